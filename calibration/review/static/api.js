// The server's answers. Every change carries the token of this page, which other sites cannot read.

let token = "";

/** What the server said no with. */
export class ApiError extends Error {
  constructor(text, status) {
    super(text);
    this.status = status;
  }
}

/** A path with its query. Lists are repeated; "", null and undefined are left out. */
export function address(path, query = {}) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const item of Array.isArray(value) ? value : [value]) {
      if (item !== "" && item !== null && item !== undefined) parameters.append(name, String(item));
    }
  }
  const text = parameters.toString();
  return text ? `${path}?${text}` : path;
}

async function answer(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer: is `sem-clip review` still running?", 0);
  }
  let body = null;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (!response.ok) throw new ApiError(body?.error ?? `The server answered ${response.status}.`, response.status);
  if (body === null) throw new ApiError("The server's answer is no JSON.", response.status);
  return body;
}

export function get(path, query = {}, signal = undefined) {
  return answer(address(path, query), { signal });
}

/** A `get` whose last call alone is answered. An earlier answer that comes later would show what was; its call ends with an AbortError. */
export function newest() {
  let aborter = null;
  return (path, query = {}) => {
    aborter?.abort();
    aborter = new AbortController();
    return get(path, query, aborter.signal);
  };
}

export function post(path, body = {}) {
  const headers = { "Content-Type": "application/json", "X-Review-Token": token };
  return answer(path, { method: "POST", headers, body: JSON.stringify(body) });
}

let [asked, told] = [0, 0];

/** What is known of the store; keeps the page's token. An answer that comes after that to a later call ends with an AbortError. */
export async function facts() {
  // Many corrections ask so fast that `newest` would answer none of them before the last.
  const mine = (asked += 1);
  const found = await get("/api/facts");
  if (mine < told) throw new DOMException("later facts are known", "AbortError");
  told = mine;
  token = found.page_token ?? token;
  return found;
}

export const pictureOf = (id, size = "thumb", region = null) =>
  address(`/picture/${id}`, { size, region: region ? region.join(",") : "" });
export const mapOf = (id, size = "thumb") => address(`/map/${id}`, { size });
export const outlineOf = (id, size = "thumb") => address(`/outline/${id}`, { size });
export const supportOf = (number) => `/support/${number}`;
/** when: of the correction, so that a mask that was drawn anew is fetched anew. */
export const maskOf = (id, when = "") => address(`/mask/${id}`, { v: when });

"""A stand-in for the review server: the same addresses, and answers from memory, without store or engine."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image
from places import ROOT

from calibration.review.app import first_page
from calibration.review.web import Asked

REVIEW = ROOT / "calibration" / "review"
CLASSES = ["good", "bridge", "hole", "<b>\"&'odd</b>"]
SIDE = 96
RATES = ("accuracy", "purity", "coverage", "overkill", "underkill")
POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'"
)
TOKEN = "of-this-page"
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
ORDERS = {
    "source": lambda frame: frame["name"],
    "newest": lambda frame: -frame["id"],
    "least sure": lambda frame: frame["confidence"] or 0,
    "most unlike": lambda frame: -(frame["novelty"] or 0),
    "confidence": lambda frame: frame["confidence"] or 0,
    "novelty": lambda frame: frame["novelty"] or 0,
    "size": lambda frame: frame["size_nm"] or 0,
}


def made_frame(number: int) -> dict[str, Any]:
    """One entry; every ninth one is left undecided."""
    label = CLASSES[number % 3]
    return {
        "id": number + 1,
        "name": f"lot/frame-{number:05}.png",
        "verdict": "cannot decide" if number % 9 == 5 else label,
        "label": label,
        "confidence": 0.5 + (number * 37 % 100) / 200,
        "score": 0.1 if label == "good" else 0.8,
        "novelty": (number * 53 % 100) / 100,
        "size_nm": None if label == "good" else 40.0 + number % 50,
        "lot": "L1",
        "wafer": str(1 + number % 2),
        "defect_id": str(number),
        "width": SIDE,
        "height": SIDE,
        "error": None,
        "corrected": None,
    }


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class FakeReview:
    """Serves on a free port of the loopback while it is open. `said` are the changes it was asked for.

    slow_ms: how long lists and what is told of a frame take.
    """

    def __init__(self, count: int = 60, *, can_teach: bool = True, slow_ms: int = 0) -> None:
        self.frames = [made_frame(number) for number in range(count)]
        self.can_teach, self.slow_ms = can_teach, slow_ms
        self.refuse = ""
        self.open = threading.Event()
        """Changes of the recipe are answered while this is set."""
        self.open.set()
        self.first_page = first_page().handler(cast(Asked, None)).content
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.log: list[tuple[dict[str, Any], Any]] = []
        self.masks: dict[int, bytes] = {}
        self.changed, self.looks, self.state, self.recipes = 1, 0, "idle", [self.recipe(1, "taught")]
        self.lock = threading.Lock()

    @staticmethod
    def recipe(number: int, note: str, sha256: str = "") -> dict[str, Any]:
        named = {"number": number, "when": "2026-01-01T00:00:00Z", "note": note}
        return {**named, "sha256": sha256 or f"{number:064}", "current": True}

    def __enter__(self) -> FakeReview:
        handler = type("Handler", (_Handler,), {"review": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self.open.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def frame(self, number: int) -> dict[str, Any]:
        return next(frame for frame in self.frames if frame["id"] == number)

    def corrected(self) -> dict[str, str]:
        """The class of each corrected frame, by name."""
        return {frame["name"]: frame["corrected"]["new"] for frame in self.frames if frame["corrected"]}

    # What GET answers

    def facts(self, _: dict[str, list[str]]) -> dict[str, Any]:
        return {
            "classes": CLASSES,
            "verdicts": dict(Counter(frame["verdict"] for frame in self.frames if frame["verdict"])),
            "lots": ["L1"],
            "frames": len(self.frames),
            "changed": self.changed,
            "keys": {str(number): name for number, name in enumerate(CLASSES, 1)},
            "corrected": len(self.corrected()),
            "who": "tester",
            "can_teach": self.can_teach,
            "can_judge": True,
            "why_not": "" if self.can_teach else "start with --bundle and --data",
            "operating_point": self.point(),
            "wafers": [{"lot": "L1", "wafer": wafer, "mm": 300.0} for wafer in ("1", "2")],
            "page_token": TOKEN,
        }

    def point(self) -> dict[str, Any]:
        return {
            "defect_threshold": 0.5,
            "pixel_threshold": 0.5,
            "temperature": 1.0,
            "confidence_thresholds": dict.fromkeys(CLASSES, 0.0),
            "novelty_threshold": None,
            "review_disagreement": False,
            "class_share": 0.25,
        }

    def listed(self, query: dict[str, list[str]]) -> dict[str, Any]:
        one = {name: values[0] for name, values in query.items()}
        found = [
            frame
            for frame in self.frames
            if all(frame[name] in query[name] for name in ("verdict", "label", "lot") if name in query)
            and one.get("text", "") in frame["name"]
            and one.get("corrected", "yes" if frame["corrected"] else "no") == ("yes" if frame["corrected"] else "no")
            and float(one.get("min_confidence", 0)) <= (frame["confidence"] or 0) <= float(one.get("max_confidence", 1))
        ]
        found.sort(key=ORDERS[one.get("order", "source")], reverse=one.get("descending") == "true")
        offset = int(one.get("offset", 0))
        return {"total": len(found), "frames": found[offset : offset + int(one["limit"])]}

    def told(self, number: int) -> dict[str, Any]:
        frame = self.frame(number)
        defect = frame["label"] != "good"
        box = {"x": 30, "y": 30, "width": 30, "height": 20, "area": 600, "peak": 0.9}
        corners = [[30, 30], [60, 30], [60, 50], [30, 50], [30, 30]]
        return {
            **frame,
            "reason": "said so, in a text of some lines: " + "it is like the supports of its class, " * 5,
            "probabilities": dict.fromkeys(CLASSES, 0.25),
            "regions": [box] if defect else [],
            "outline": [corners] if defect else [],
            "warnings": [],
            "pixel_size_nm": [2.0, 2.0],
            "pixel_threshold": 0.5,
            "defect_threshold": 0.5,
            "x_nm": None,
            "y_nm": None,
        }

    def similar(self, number: int) -> dict[str, Any]:
        others = [frame for frame in self.frames if frame["id"] != number and frame["id"] % 3 == number % 3][:6]
        return {"frames": [{**frame, "cosine": 0.9} for frame in others]}

    def supports(self, number: int) -> dict[str, Any]:
        return {
            "supports": [
                {"number": n, "name": f"s{n}.png", "class": CLASSES[n], "cosine": 0.8, "picture": n == 0}
                for n in range(3)
            ]
        }

    def summary(self, _: dict[str, list[str]]) -> dict[str, Any]:
        counts = Counter(frame["verdict"] for frame in self.frames)
        rows = [[0] * len(CLASSES) for _ in CLASSES]
        for frame in self.frames:
            if frame["corrected"] and frame["verdict"] in CLASSES:
                rows[CLASSES.index(frame["verdict"])][CLASSES.index(frame["corrected"]["new"])] += 1
        decided = sum(map(sum, rows))
        right = sum(rows[k][k] for k in range(len(CLASSES)))
        covered = len(self.frames) - counts["cannot decide"]
        return {
            "pareto": [{"class": name, "count": count, "corrected": 0} for name, count in counts.most_common()],
            "confusion": {"classes": CLASSES, "rows": rows},
            "purity": {"value": right / decided if decided else None, "count": right, "of": decided},
            "coverage": {"value": covered / len(self.frames), "count": covered, "of": len(self.frames)},
            "operating_point": self.point(),
        }

    def moved(self, query: dict[str, list[str]]) -> dict[str, Any]:
        threshold = float(query.get("defect_threshold", ["0.5"])[0])
        verdicts = {frame["id"]: frame["verdict"] if frame["score"] >= threshold else "good" for frame in self.frames}
        changed = [frame["id"] for frame in self.frames if verdicts[frame["id"]] != frame["verdict"]]
        rates = {name: rate for name, rate in self.summary({}).items() if name in ("purity", "coverage")}
        return {
            **rates,
            "verdicts": dict(Counter(verdicts.values())),
            "before": {**rates, "verdicts": dict(Counter(frame["verdict"] for frame in self.frames))},
            "changed": changed[:200],
            "changed_total": len(changed),
            "left_out": 0,
        }

    def wafer(self, query: dict[str, list[str]]) -> dict[str, Any]:
        mine = [frame for frame in self.frames if [frame["wafer"]] == query["wafer"]]
        points = [
            {"id": frame["id"], "verdict": frame["verdict"], "x": 1e8 * np.cos(k), "y": 1e8 * np.sin(k)}
            for k, frame in enumerate(mine)
        ]
        return {"mm": 300.0, "points": points}

    def job(self, _: dict[str, list[str]]) -> dict[str, Any]:
        if self.state == "running":
            self.looks += 1
            if self.looks > 1:
                self.state = "done"
        rates = [{name: {"value": v, "count": round(40 * v), "of": 40} for name in RATES} for v in (0.8, 0.9)]
        changed = [{"frame": "a.png", "truth": "hole", "before": "good", "after": "hole"}]
        compared = {"frames": 40, "corrected": 2, "before": rates[0], "after": rates[1], "changed": changed}
        done = self.state == "done"
        return {
            "what": "teach",
            "state": self.state,
            "lines": ["supports encoded"] * self.looks,
            **({"before_after": compared, "warning": "few frames judged it"} if done else {"before_after": None}),
        }

    def picture(self, number: int, query: dict[str, list[str]]) -> bytes:
        rng = np.random.default_rng(number)
        grey = rng.integers(60, 120, (SIDE, SIDE)).astype(np.uint8)
        grey[30:50, 30:60] = 220
        if "region" in query:
            x, y, width, height = map(int, query["region"][0].split(","))
            grey = grey[y : y + height, x : x + width]
        return png(grey)

    def mask(self, number: int) -> bytes:
        return self.masks.get(number) or png(np.zeros((SIDE, SIDE), np.uint8))

    # What POST does

    def correct(self, body: dict[str, Any]) -> dict[str, Any]:
        frame = self.frame(body["id"])
        self.log.append((frame, frame["corrected"]))
        frame["corrected"] = {
            "new": body["new"],
            "old": frame["verdict"],
            "when": f"2026-01-01T00:00:{len(self.log) % 60:02}Z",
            "who": "tester",
            "mask": body["mask"] is not None,
        }
        if body["mask"] not in (None, "outline"):
            self.masks[frame["id"]] = base64.b64decode(body["mask"], validate=True)
        return {"corrected": frame["corrected"]}

    def undo(self, _: dict[str, Any]) -> dict[str, Any]:
        frame, before = self.log.pop()
        frame["corrected"] = before
        return {"id": frame["id"], "corrected": before}

    def teach(self, _: dict[str, Any]) -> dict[str, Any]:
        self.state, self.looks = "running", 0
        return {"job": 1}

    def accept(self, body: dict[str, Any]) -> dict[str, Any]:
        self.state = "idle"
        return self.use(self.recipe(len(self.recipes) + 1, body["note"]))

    def use(self, line: dict[str, Any]) -> dict[str, Any]:
        for recipe in self.recipes:
            recipe["current"] = False
        self.recipes.append(line)
        return {"accepted": line}

    def discard(self, _: dict[str, Any]) -> dict[str, Any]:
        self.state = "idle"
        return {}

    def judge(self, _: dict[str, Any]) -> dict[str, Any]:
        """Every corrected frame gets a new answer, under a new number, as in the store."""
        for frame in self.frames:
            if frame["corrected"]:
                frame["verdict"] = frame["label"] = frame["corrected"]["new"]
                frame["id"] += 1_000_000
        self.changed += 1
        return {"job": 2}

    def back(self, body: dict[str, Any]) -> dict[str, Any]:
        sha256 = self.recipes[body["number"] - 1]["sha256"]
        return self.use(self.recipe(len(self.recipes) + 1, f"back to {body['number']}", sha256))


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser drops what it does not need any more; anything else is a fault of this stand-in."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    review: FakeReview
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query, path, review = parse_qs(parts.query), parts.path, self.review
        if path == "/":
            return self.send(200, "text/html; charset=utf-8", self.review.first_page)
        if path.startswith("/static/"):
            file = REVIEW / "static" / path.removeprefix("/static/")
            return self.send(200, KINDS[file.suffix], file.read_bytes())
        if found := re.fullmatch(r"/(picture|map|outline|mask|support)/(\d+)", path):
            return self.send(200, "image/png", self.image(found[1], int(found[2]), query))
        if path.startswith("/api/frames"):
            time.sleep(review.slow_ms / 1000)
        if found := re.fullmatch(r"/api/frames/(\d+)(?:/(similar|supports))?", path):
            answer = {None: review.told, "similar": review.similar, "supports": review.supports}[found[2]]
            return self.answer(answer(int(found[1])))
        lists = {"/api/facts": review.facts, "/api/frames": review.listed, "/api/summary": review.summary}
        lists |= {"/api/operating-point": review.moved, "/api/wafer": review.wafer, "/api/teach": review.job}
        lists["/api/recipes"] = lambda _: {"recipes": review.recipes}
        if path not in lists:
            return self.answer({"error": f"there is no {path}"}, 404)
        with review.lock:
            return self.answer(lists[path](query))

    def image(self, kind: str, number: int, query: dict[str, list[str]]) -> bytes:
        if kind in ("picture", "support"):
            return self.review.picture(number, query)
        if kind == "mask":
            return self.review.mask(number)
        paint = np.zeros((SIDE, SIDE, 4), np.uint8)
        paint[30:50, 30:60] = (255, 40, 30, 180) if kind == "map" else (255, 220, 0, 255)
        if kind == "outline":
            paint[32:48, 32:58] = 0
        return png(paint)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        review, path = self.review, urlsplit(self.path).path
        if self.headers["X-Review-Token"] != TOKEN or self.headers["Content-Type"] != "application/json":
            return self.answer({"error": "not from this page"}, 403)
        if review.refuse:
            return self.answer({"error": review.refuse}, 409)
        if path.endswith("/undo") and not review.log:
            return self.answer({"error": "nothing to undo"}, 409)
        does = {"/api/corrections": review.correct, "/api/corrections/undo": review.undo, "/api/teach": review.teach}
        does |= {
            "/api/teach/accept": review.accept,
            "/api/teach/discard": review.discard,
            "/api/judge": review.judge,
            "/api/recipes/back": review.back,
        }
        if path in ("/api/teach/accept", "/api/recipes/back"):
            review.open.wait()
        with review.lock:
            review.said.append((path, body))
            return self.answer(does[path](body))

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

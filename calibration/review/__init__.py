"""The review page: verdicts to look at, corrections, and teaching again. Without torch, behind the extra `review`.

`command` opens a store and serves it; `app` puts the handlers behind a server; `security` guards it. All other modules
know no server: a handler takes a `web.Asked` and gives a `web.Answer`.
"""

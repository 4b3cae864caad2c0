"""The running platform under load, beside the limit of its road and beside peers.

Closed-loop load is wrk's. Open-loop load is `benchmarks.serving.open_loop`: of the tools that
Debian 12 has, none sends at a constant rate and counts latency from the moment a request was due
(h2load sends in bursts, since the timers of all its connections fire together, and counts from the
moment of sending; hey waits for an answer before it sends again on a connection).
"""

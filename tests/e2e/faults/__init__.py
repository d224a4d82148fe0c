"""What becomes of a call when its provider fails: scenarios on real sockets, against the process.

apis      how each endpoint is asked, and what its providers say when all is well
cast      the providers: scripted upstreams on one loop, each model with a script of its own
world     a running proxy with its cast; `Scene` is one test's share of it
test_*    tables: what the provider does, and what the client, and the next provider, see of it

Timers are short only for the providers that are to run into them, so that a busy machine makes a
test slow and not red.
"""

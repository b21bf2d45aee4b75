"""Workers on a Ray cluster: started, spread, replaced, and as many as there is work for.

Ray owns no state. A worker is the same as `serve --role worker`; what it does is in the ledger and
the segments, and a cluster that is gone is followed by another one. `scaling` decides how many
there should be (pure), `fleet` keeps them, `engine` is the only part that knows Ray, and `worker`
is what runs on its nodes.
"""

"""Engines that play in a process of their own: what they speak, who serves, who asks.

    wire          frames on a socket: a JSON header, then the bytes of arrays
    messages      what is asked and answered, as schemas
    addresses     where an engine listens
    backend       what stands behind the socket: vLLM, or our own policy
    server        answers many clients, one question at a time
    client        asks, and checks the answers
    process       an engine as a child of the run
    engine        the run's player, on all of the above
    official      OpenVLA's own code as a child, for comparisons; official_program is what the child runs

The record of why it is so: docs/decisions/020.
"""

"""Policies behind sockets. Engines that play for a run in a process of their own:

    wire          frames on a socket: a JSON header, then the bytes of arrays
    messages      what is asked and answered, as schemas
    addresses     where an engine listens
    backend       what stands behind the socket: vLLM, or our own policy
    server        answers many clients, one question at a time
    client        asks, and checks the answers
    process       an engine as a child of the run
    engine        the run's player, on all of the above
    official      OpenVLA's own code as a child, for comparisons; official_program is what the child runs

And policies over WebSocket, for programs of others:

    packing         arrays in msgpack
    websocket       who may connect
    openpi          serves any policy with openpi's protocol; needs nothing of this package
    openpi_client   asks such a server, and checks the answers
    served_policy   a policy of ours, as it is asked there
    vla_eval        the same for vla-evaluation-harness
    limits          what every action keeps that leaves
    freshness       numbers and times of observations, so that an old one is never answered
    robot_client    a robot's side: an action in bounded time, or a stop

The records of why it is so: docs/decisions/020 and 022.
"""

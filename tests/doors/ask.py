"""Ask a served policy with openpi's own client: `python ask.py HOST PORT KEY FILE.npz`. Writes its answers to FILE."""

from __future__ import annotations

import json
import sys

import numpy as np
from openpi_client import image_tools
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def main(host: str, port: str, key: str, file: str) -> None:
    policy = WebsocketClientPolicy(host, int(port), key or None)
    answers = []
    pictures = [np.full((256, 256, 3), level, np.uint8) for level in (20, 120, 230)]
    sent = [
        image_tools.convert_to_uint8(image_tools.resize_with_pad(p, 224, 224)) for p in pictures
    ]

    def observation(picture: np.ndarray) -> dict:
        # as examples/libero/main.py makes it
        return {
            "observation/image": picture,
            "observation/wrist_image": picture,
            "observation/state": np.zeros(8),
            "prompt": "pick up the milk and place it in the basket",
        }

    for picture in sent:
        answers.append(policy.infer(observation(picture))["actions"])
    broker = ActionChunkBroker(policy, 3)
    held = [broker.infer(observation(sent[0]))["actions"] for _ in range(3)]
    try:
        policy.infer({"observation/image": sent[0]})
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    policy.infer(observation(sent[0]))  # it goes on
    metadata = json.dumps(policy.get_server_metadata())
    np.savez(file, sent=sent, answers=answers, held=held, refused=refused, metadata=metadata)


if __name__ == "__main__":
    main(*sys.argv[1:])

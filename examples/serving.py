"""Answer questions about images over HTTP, those that wait in one batch; needs no download.

python examples/serving.py

One thread runs the model; requests that came in the meantime are its next batch.
"""

import io
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote
from urllib.request import urlopen

from PIL import Image

import turbovlm
from turbovlm_lab import vlm
from turbovlm_lab.scenes import scene, seed_of_split

loaded: tuple[Any, Any] = vlm.load_vlm()
model, processor = loaded
turbovlm.apply(model, turbovlm.VisualTokens(keep=0.5))
waiting: queue.Queue[tuple[Image.Image, str, Future[str]]] = queue.Queue()


def work(largest: int = 8) -> None:
    """Answer what waits, for ever."""
    while True:
        batch = [waiting.get()]
        while len(batch) < largest and not waiting.empty():
            batch.append(waiting.get())
        images, questions, answers = (list(part) for part in zip(*batch, strict=True))
        try:
            inputs = processor(images=images, text=questions, padding=True, return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=vlm.ANSWER_TOKENS)
            new = ids[:, inputs["input_ids"].shape[1] :]
            texts = processor.batch_decode(new, skip_special_tokens=True)
            for answer, text in zip(answers, texts, strict=True):
                answer.set_result(text)
        except Exception as error:  # a request must not stop the server
            for answer in answers:
                answer.set_exception(error)


class Handler(BaseHTTPRequestHandler):
    """POST /QUESTION with the bytes of an image; the body of the reply is the answer."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: Future[str] = Future()
        waiting.put((Image.open(io.BytesIO(body)).convert("RGB"), unquote(self.path[1:]), answer))
        text = answer.result().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None: ...


def ask(index: int) -> str:
    """A question of a client about a scene."""
    png = io.BytesIO()
    Image.fromarray(scene(seed_of_split("test", index)).image).save(png, "PNG")
    url = f"http://127.0.0.1:{server.server_port}/{quote('<image>' + vlm.DESCRIBE)}"
    return urlopen(url, png.getvalue()).read().decode()


threading.Thread(target=work, daemon=True).start()
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
with ThreadPoolExecutor(4) as clients:
    print(*clients.map(ask, range(4)), sep="\n")
server.shutdown()

"""A real server process on the loopback address that does what the url says.

``POST /<case>/<behaviour>,<behaviour>,...``: the n-th request of a case is answered by the n-th
behaviour, further ones by the last. ``GET /stats/<case>`` tells what the case saw.
"""

import json
import socket
import sys
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()
seen = defaultdict(list)
flying = defaultdict(int)
most = defaultdict(int)
gates = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        case = self.path.split("/")[2]
        with lock:
            out = {"requests": seen[case], "most": most[case]}
        self.send(200, json.dumps(out))

    def do_POST(self):
        _, case, behaviours, *rest = self.path.split("/")
        body = self.rfile.read(int(self.headers["content-length"]))
        with lock:
            number = len(seen[case])
            seen[case].append({"body": json.loads(body), "key": self.headers.get("authorization")})
            flying[case] += 1
            most[case] = max(most[case], flying[case])
        names = behaviours.split(",")
        try:
            self.behave(names[min(number, len(names) - 1)], case, json.loads(body), bool(rest))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with lock:
                flying[case] -= 1

    def behave(self, name, case, body, chat):
        if name == "slow":
            time.sleep(2)
        if name.startswith("gate"):  # answers when so many requests are there at the same time
            with lock:
                gate = gates.setdefault(case, threading.Barrier(int(name[4:])))
            try:
                gate.wait(timeout=20)
            except threading.BrokenBarrierError:
                return self.send(400, "they did not come together")
        if name.isdigit():
            return self.send(int(name), f"no: {self.headers.get('authorization')}")
        if name == "html":
            return self.send(200, "<html>busy</html>")
        if name == "drop":
            return self.hang_up()
        text = json.dumps(chat_reply(name, body) if chat else score_reply(name, body))
        if name == "cut":
            self.send_response(200)
            self.send_header("content-length", str(len(text) + 10))
            self.end_headers()
            self.wfile.write(text[:5].encode())
            return self.hang_up()
        return self.send(200, text)

    def hang_up(self):
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def send(self, status, text):
        data = text.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def score_reply(name, body):
    scores = [len(r) for r in body["responses"]]
    if name == "short":
        scores = scores[1:]
    if name == "words":
        scores = ["high"] * len(scores)
    if name == "nan":
        scores = [float("nan")] * len(scores)
    return scores if name == "bare" else {"scores": scores}


def chat_reply(name, body):
    """The longer response is better; a mark is the length."""
    text = body["messages"][0]["content"]
    if name == "mumble":
        answer = "I cannot say."
    elif "[Response B]" in text:
        first = text.split("[Response A]\n")[1].split("\n\n[Response B]")[0]
        second = text.split("[Response B]\n")[1].split("\n\nSay in")[0]
        letter = "A" if len(first) > len(second) else "B" if len(second) > len(first) else "tie"
        answer = f"Fine. Verdict: {'A' if name == 'biased' else letter}"
    else:
        response = text.split("[Response]\n")[1].split("\n\nSay in")[0]
        answer = f"Fine.\n**Score: {len(response)}**"
    if name == "shapeless":
        return {"choices": []}
    return {"choices": [{"message": {"role": "assistant", "content": answer}}]}


if __name__ == "__main__":
    ThreadingHTTPServer.request_queue_size = 128  # connections that arrive together
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until the tests close it

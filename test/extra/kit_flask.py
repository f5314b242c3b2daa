"""
Uma aplicação Flask que atende pelo kit em Python (serve_wsgi). Uma porta é um arquivo na pasta
GATES, que o teste cria quando a resposta deve seguir.
"""

import os
import time

from flask import Flask, Response, request
from worker import serve_wsgi

app = Flask(__name__)


def wait_gate(name, gone):
    """Espera que o teste abra uma porta, ou que ninguém espere mais."""
    while not os.path.exists(os.path.join(os.environ["GATES"], name)) and not gone():
        time.sleep(0.005)


@app.route("/echo/<name>", methods=["GET", "PUT"])
def echo(name):
    """Devolve o que recebeu."""
    seen = [request.method, request.url, request.remote_addr, request.headers.get("X-A"), name]
    response = Response("|".join(map(str, seen)).encode() + request.get_data(), 201)
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@app.route("/pieces/<ending>")
def pieces(ending):
    """Entrega uma resposta aos poucos, que pode acabar mal."""
    gone = request.environ["json_proxy.gone"]

    def make():
        """Espera uma porta antes de cada pedaço."""
        try:
            for n in (1, 2, 3):
                wait_gate(f"{ending}{n}", gone)
                yield f"data: {n}\n\n"
            if ending == "fail":
                wait_gate("fail4", gone)
                raise RuntimeError("acabou")
        finally:
            print(f"finally {ending}", flush=True)

    return Response(make(), mimetype="text/event-stream")


@app.route("/fail")
def fail():
    """Falha antes de responder."""
    raise RuntimeError("segredo")


def start_late(environ, start_response):
    """Uma aplicação WSGI crua: o que o Flask nunca faz."""
    path = environ["PATH_INFO"]
    if path == "/write":
        start_response("200 OK", [("X-A", "b")])(b"um ")
        return [b"", b"dois"]
    if path == "/early":
        raise RuntimeError("segredo")
    if path == "/twice":
        start_response("200 OK", [])
        start_response("200 OK", [])
    if path == "/empty":
        start_response("204 No Content", [("ETag", "1")])
        return []
    return app(environ, start_response)


serve_wsgi(start_late)

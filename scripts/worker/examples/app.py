#!/usr/bin/env python3
"""
Uma aplicação Flask atendida pelo proxy, sem porta própria; uma das rotas responde aos poucos.

    pip install redis flask            (no Debian, apt-get install python3-redis python3-flask)
    python3 scripts/worker/examples/app.py

    curl -N http://127.0.0.1:8771/count/5
"""

import os
import sys
import time

from flask import Flask, Response, jsonify, request

# o kit está uma pasta acima; num projeto seu, ao lado do worker, esta linha sobra
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from worker import serve_wsgi  # noqa: E402

app = Flask(__name__)


@app.route("/")
def index():
    """Responde de uma vez."""
    return jsonify(hello=request.args.get("name", "world"))


@app.route("/count/<int:last>")
def count(last):
    """Responde aos poucos: quem sai interrompe o gerador."""

    def numbers():
        """Entrega um número por vez."""
        for n in range(1, last + 1):
            yield f"{n}\n"
            time.sleep(0.3)

    return Response(numbers(), mimetype="text/plain")


if __name__ == "__main__":
    serve_wsgi(app)

#!/bin/sh
# Um cliente de exemplo: confere o proxy com /ping e lê um fluxo linha a linha.
#
#   sh scripts/worker/examples/client-curl.sh                          http://127.0.0.1:8771
#   sh scripts/worker/examples/client-curl.sh -p 9000 --host proxy     outra porta, outra máquina
#   sh scripts/worker/examples/client-curl.sh -d '{"pergunta": 1}'     o corpo do pedido
#
# A porta é a do proxy: -p ou HTTP_PORT. Sai com 1 se o proxy ou o Redis não respondem.
set -eu
port=${HTTP_PORT:-8771}
host=127.0.0.1
body='{"pergunta": "olá"}'

while [ $# -gt 0 ]; do
  case $1 in
    -p | --port) port=$2 ;;
    --host) host=$2 ;;
    -d | --data) body=$2 ;;
    *)
      echo "opção desconhecida: $1; aceito: -p porta, --host nome, -d corpo" >&2
      exit 2
      ;;
  esac
  shift 2
done
url=http://$host:$port

if ! curl -sS --fail "$url/ping"; then
  echo "sem pong em $url/ping: o proxy está de pé? o Redis responde?" >&2
  exit 1
fi
echo
# -N: sem ela o curl guarda as linhas e as mostra de uma vez
curl -sSN "$url/exemplo" -H 'Content-Type: application/json' -d "$body"

#!/bin/sh
# Um worker em shell: roda um comando para cada tarefa. O comando recebe a tarefa em JSON pela
# entrada, e cada linha que ele escreve é uma linha da resposta. Se falha, uma linha de erro.
#
#   sh scripts/worker/worker.sh jq -c '{echo: .body}'
#   sh scripts/worker/worker.sh sh -c 'for n in 1 2 3; do echo "{\"n\": $n}"; sleep 1; done'
#
# Precisa só do redis-cli. As variáveis são as do proxy: REDIS_SERVER (host:porta/banco, URL ou
# caminho de um socket), REDIS_PASSWORD, REDIS_CHANNEL, REDIS_PREFIX e REDIS_LIST_PREFIX.
# Atende uma tarefa por vez; as outras esperam sem reserva, e outro worker do canal as pode tomar.
# Com SIGTERM ou SIGINT, termina a que está fazendo e sai.
set -u

server=${REDIS_SERVER:-127.0.0.1:6379/1}
channel=${REDIS_CHANNEL:-ndjson_jobs}
prefix=${REDIS_PREFIX:-ndjson_task_}
list_prefix=${REDIS_LIST_PREFIX:-ndjson_list_}
[ -z "${REDIS_PASSWORD:-}" ] || export REDISCLI_AUTH="$REDIS_PASSWORD"

case $server in
  *://*) where="-u $server" ;;
  *:/* | /*)
    socket=${server#unix:} database=${server#*\?db=}
    [ "$database" = "$server" ] && database=0
    where="-s ${socket%%\?*} -n $database"
    ;;
  *) where="-u redis://$server" ;;
esac

# Empurra uma linha, só se alguém ainda espera, e renova a reserva; devolve o tamanho da lista.
push="if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('EXPIRE', KEYS[3], 600)
return redis.call('RPUSH', KEYS[2], ARGV[1])"

# Fala com o Redis. $@: o comando
cli() {
  # shellcheck disable=SC2086 # são palavras separadas
  redis-cli $where "$@" </dev/null
}

# Roda o comando, e acrescenta uma linha de erro se ele falha. $1: a tarefa; demais: o comando
answer() {
  task=$1
  shift
  printf '%s\n' "$task" | "$@" || echo "{\"error\": \"exit status $?\"}"
}

# Atende uma tarefa, se a reserva for nossa. $1: a chave dela; demais: o comando
serve() {
  key=$1 uuid=${1#"$prefix"}
  list=$list_prefix$uuid claim=ndjson_claim_$uuid
  shift
  [ "$(cli set "$claim" "$(uname -n):$$" nx ex 600)" = OK ] || return
  task=$(cli get "$key")
  [ -n "$task" ] || { cli del "$claim" >/dev/null && return; }
  echo "worker: $uuid"
  answer "$task" "$@" | while IFS= read -r line; do
    # sem este leitor o comando morre na próxima linha que escrever
    [ "$(cli eval "$push" 3 "$key" "$list" "$claim" "$line")" -gt 0 ] 2>/dev/null || exit
  done && cli del "$key" >/dev/null
}

[ $# -gt 0 ] || { echo "uso: sh $0 comando [argumentos]" >&2 && exit 2; }
pipe=$(mktemp -u)
trap 'rm -f "$pipe"' EXIT
trap 'stopping=1; kill "$listener" 2>/dev/null' TERM INT
stopping=
until [ "$stopping" ]; do
  mkfifo "$pipe" || exit
  # shellcheck disable=SC2086
  redis-cli $where subscribe "$channel" </dev/null >"$pipe" &
  listener=$!
  while [ -z "$stopping" ] && IFS= read -r key; do
    case $key in
      subscribe) rm -f "$pipe" ;; # os dois lados já o abriram
      "$prefix"*) serve "$key" "$@" ;;
    esac
  done <"$pipe"
  rm -f "$pipe"
  [ "$stopping" ] || sleep 1 # o Redis caiu
done

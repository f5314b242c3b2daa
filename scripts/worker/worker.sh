#!/bin/sh
# Um worker em shell: roda um comando para cada tarefa. O comando recebe a tarefa em JSON pela
# entrada, e cada linha que ele escreve é uma linha da resposta. Se falha, uma linha de erro.
#
#   sh worker.sh jq -c '{echo: .body}'
#   sh worker.sh sh -c 'for n in 1 2 3; do echo "{\"n\": $n}"; sleep 1; done'
#
# Se a primeira linha é RAW <status> {cabeçalhos}, o que vem depois chega ao cliente byte por byte,
# e um comando que falha corta a conexão:
#
#   sh worker.sh sh -c 'echo "RAW 200 {\"Content-Type\": \"image/png\"}"; cat foto.png'
#
# Precisa só do redis-cli. As variáveis são as do proxy: REDIS_SERVER, em todas as formas dele,
# REDIS_PASSWORD, REDIS_PASSWORD_FILE, REDIS_CHANNEL, REDIS_PREFIX e REDIS_LIST_PREFIX.
# Atende uma tarefa por vez; as outras esperam sem reserva, e outro worker do canal as pode tomar.
# Com SIGTERM ou SIGINT, termina a que está fazendo e sai.
set -u

channel=${REDIS_CHANNEL:-ndjson_jobs}
prefix=${REDIS_PREFIX:-ndjson_task_}
list_prefix=${REDIS_LIST_PREFIX:-ndjson_list_}

# Empurra ARGV[2], só se alguém ainda espera, e renova a reserva. Devolve o tamanho da lista; 0 se
# ninguém espera, -1 se não há o que empurrar. Um pedaço de bytes (ARGV[1] é raw) que por acaso é o
# elemento que corta a conexão vai em dois.
script="if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('EXPIRE', KEYS[3], 600)
if ARGV[1] == 'raw' and ARGV[2] == '' then return -1 end
if ARGV[1] == 'raw' and ARGV[2] == 'HTTP ABORT' then
  return redis.call('RPUSH', KEYS[2], 'HTTP', ' ABORT')
end
return redis.call('RPUSH', KEYS[2], ARGV[2])"

# Termina o worker com uma linha. $1: por quê
refuse() {
  echo "worker: $1" && exit 1
}

# Desfaz os %XX de um texto. $1: o texto
decode() {
  text=$1
  while rest=${text#*%} && [ "$rest" != "$text" ]; do
    after=${rest#??} hex=
    hex=${rest%"$after"}
    case $hex in *[!0-9A-Fa-f]* | '') refuse "REDIS_SERVER: %$hex não é um caractere" ;; esac
    # shellcheck disable=SC2059 # o formato é o próprio caractere, em octal
    printf "%s\\$(printf %o "0x$hex")" "${text%%\%*}"
    text=$after
  done
  printf %s "$text"
}

# Separa REDIS_SERVER em tls, user, password, e socket ou host e port, e database. $1: o endereço
read_server() {
  tls='' user='' password='' socket='' port=6379 database=0 rest=$1
  forms="REDIS_SERVER: aceito host:porta/banco, redis://, rediss:// ou /caminho.sock?db=1"
  case $rest in rediss://*) tls=1 ;; esac
  case $rest in
    redis://* | rediss://* | unix://*)
      rest=${rest#*://} userinfo=${rest%@*}
      [ "$userinfo" = "$rest" ] && userinfo='' || rest=${rest##*@}
      user=$(decode "${userinfo%%:*}") || refuse "${user#worker: }"
      case $userinfo in *:*) password=$(decode "${userinfo#*:}") || refuse "$forms" ;; esac
      ;;
    unix:/*) rest=${rest#unix:} ;;
  esac
  case $rest in
    /*\?db=*) socket=${rest%%\?*} database=${rest##*\?db=} rest='' host=. ;;
    /*) socket=$rest rest='' host=. ;;
    \[*\]*) host=${rest#?} host=${host%%\]*} rest=${rest#*\]} ;;
    *) host=${rest%%[:/]*} rest=${rest#"${rest%%[:/]*}"} ;;
  esac
  case $rest in :*) port=${rest#:} port=${port%%/*} rest=${rest#":$port"} ;; esac
  case $rest in /*) database=${rest#/} rest='' ;; esac
  : "${database:=0}"
  case $port$database in *[!0-9]*) rest=1 ;; esac
  case $host in '' | *[!A-Za-z0-9_.:-]*) rest=1 ;; esac
  case $socket in *\?*) rest=1 ;; esac
  [ -z "$rest" ] && [ -n "$port" ] || refuse "$forms"
  case $host in *:*) where="[$host]:$port/$database" ;; *) where=$host:$port/$database ;; esac
  [ -z "$socket" ] || where="unix:$socket?db=$database"
}

# Fala com o Redis. $@: o comando; com -x, o último argumento vem da entrada
cli() {
  ${as:-} redis-cli ${tls:+--tls} ${tls:+${NODE_EXTRA_CA_CERTS:+--cacert "$NODE_EXTRA_CA_CERTS"}} \
    ${user:+--user "$user"} ${socket:+-s "$socket"} -h "$host" -p "$port" -n "$database" "$@"
}

# Empurra o que vem pela entrada, e escreve o que o script devolve. $1: lines ou raw
push() {
  cli -x eval "$script" 3 "$key" "$list" "$claim" "$1"
}

# Empurra o que o comando escreve, e diz no descritor 3 a forma da resposta, e se foi interrompida:
# sem este leitor o comando morre no que escrever depois.
send() {
  framing=lines reply=1 line=''
  while [ "$reply" -gt 0 ] 2>/dev/null && { IFS= read -r line || [ -n "$line" ]; }; do
    reply=$(printf %s "$line" | push lines)
    case $framing$line in
      lines) ;;
      linesRAW\ [0-9]*) framing=raw && break ;;
      *) framing=text ;;
    esac
  done
  while [ "$framing" = raw ] && [ "$reply" -gt 0 ] 2>/dev/null; do
    reply=$(dd bs=65536 count=1 2>/dev/null | push raw)
  done
  echo "$framing" >&3
  case $reply in
    0) echo gone >&3 ;;
    -1 | [1-9]*) ;;
    *) echo "worker: $uuid: $reply" && echo gone >&3 ;;
  esac
}

# Reserva uma tarefa; um Redis que carrega os dados ou que já não é o que atende é tentado de novo.
claim_task() {
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    reply=$(cli set "$claim" "$(uname -n):$$" nx ex 600 2>&1)
    case $reply in
      OK) return 0 ;;
      '') return 1 ;; # é de outro worker
      LOADING* | READONLY* | MOVED* | CLUSTERDOWN* | MASTERDOWN*) sleep 1 ;;
      *) break ;;
    esac
  done
  echo "worker: tarefa deixada: $reply"
  return 1
}

# Atende uma tarefa, se a reserva for nossa. $1: a chave dela; demais: o comando
serve() {
  key=$1 uuid=${1#"$prefix"}
  list=$list_prefix$uuid claim=ndjson_claim_$uuid
  shift
  claim_task || return
  task=$(cli get "$key")
  if [ -z "$task" ]; then # o cliente já desistiu, ou o banco é outro
    [ "$found" ] || echo "worker: $key não está em $where: é outro banco?"
    cli del "$claim" >/dev/null
    return
  fi
  found=1
  echo "worker: $uuid"
  # 3 leva o que se conclui da resposta, 4 é a saída do worker
  said=$({
    { { printf '%s\n' "$task" | "$@" 3>&- 4>&-; } && echo status 0 >&3 || echo status $? >&3; } |
      send >&4
  } 3>&1)
  case $said in
    *gone*) return ;;
    *"status 0"*) ;;
    *raw*) printf 'HTTP ABORT' | push lines >/dev/null ;;
    *)
      status=${said#*status }
      printf '{"error": "exit status %d"}' "${status%%[!0-9]*}" | push lines >/dev/null
      ;;
  esac
  cli del "$key" >/dev/null
}

# Espera um Redis que atenda; o que o tempo não muda termina o worker.
await_redis() {
  reply=$(cli ping 2>&1)
  case $reply in
    *NOAUTH* | *WRONGPASS* | *NOPERM* | *"AUTH failed"* | *"DB index"*)
      refuse "$where: $(printf '%s\n' "$reply" | head -n 1)"
      ;;
    PONG) told='' && return 0 ;;
  esac
  [ "$reply" = "$told" ] || echo "worker: sem Redis: $reply"
  told=$reply
  return 1
}

[ $# -gt 0 ] || { echo "uso: sh $0 comando [argumentos]" >&2 && exit 2; }
read_server "${REDIS_SERVER:-127.0.0.1:6379/1}"
if [ -z "${REDIS_PASSWORD:-}" ] && [ -n "${REDIS_PASSWORD_FILE:-}" ]; then
  REDIS_PASSWORD=$(cat "$REDIS_PASSWORD_FILE") || exit 1
fi
password=${REDIS_PASSWORD:-$password}
[ -z "$password" ] || export REDISCLI_AUTH="$password"

pipe=$(mktemp -u)
exec 4>&1
trap 'rm -f "$pipe"' EXIT
trap 'stopping=1; kill "$listener" 2>/dev/null' TERM INT
stopping='' listener='' found='' told=''
until [ "$stopping" ]; do
  await_redis || { sleep 1; continue; }
  mkfifo "$pipe" || exit
  { as=exec && cli subscribe "$channel"; } </dev/null >"$pipe" 4>&- & # o pid é o do redis-cli
  listener=$!
  while [ -z "$stopping" ] && IFS= read -r key; do
    case $key in
      subscribe) # os dois lados já abriram o pipe
        rm -f "$pipe"
        echo "worker: ouvindo $channel em $where"
        ;;
      "$prefix"*) serve "$key" "$@" ;;
    esac
  done <"$pipe"
  rm -f "$pipe"
  [ "$stopping" ] || sleep 1 # o Redis caiu
done

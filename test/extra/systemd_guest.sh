#!/bin/sh
# O que test/extra/systemd.test.ts faz dentro de um systemd de verdade (boot_systemd.sh): instala o
# serviço, usa, mata, configura mal, deixa sem Redis, troca pelo binário, desinstala. Cada linha que
# escreve é nome=valor; quem confere é o teste.
set -eu

settings=/etc/json-proxy.env
url=http://127.0.0.1:8771

# Espera que o proxy atenda.
ready() {
  until [ "$(curl -s $url/ping)" = pong ]; do sleep 0.1; done
  echo "$1=pong"
}

# Diz um valor do serviço. $1: nome a dar; $2: propriedade
property() {
  echo "$1=$(systemctl show -p "$2" --value json-proxy)"
}

# Espera por um valor do serviço. $1: propriedade; $2: valor
wait_property() {
  until [ "$(systemctl show -p "$1" --value json-proxy)" = "$2" ]; do sleep 0.1; done
}

# Dá um valor a uma configuração. $1: nome; $2: valor
set_setting() {
  sed -i "s/^#*$1=.*/$1=$2/" $settings
}

# Nem todo systemd pode dar a um serviço mais arquivos abertos do que ele mesmo tem.
allow_files() {
  [ "$(ulimit -Hn)" -lt 65536 ] || return 0
  mkdir -p /etc/systemd/system/json-proxy.service.d
  printf '[Service]\nLimitNOFILE=%s\n' "$(ulimit -Hn)" \
    >/etc/systemd/system/json-proxy.service.d/files.conf
}

# Faz um pedido e responde por um worker.
stream() {
  curl -s -N $url/demo >/tmp/answer &
  client=$!
  until key=$(redis-cli -n 1 keys 'ndjson_task_*') && [ -n "$key" ]; do sleep 0.1; done
  redis-cli -n 1 rpush "ndjson_list_${key#ndjson_task_}" '{"n": 1}' EOF >/tmp/pushed
  wait $client
  echo "$1=$(cat /tmp/answer)"
}

allow_files
redis-server --save '' --daemonize yes >/tmp/redis.log
sh /mnt/systemd/install.sh /mnt/json-proxy.js >/tmp/install.log
property enabled UnitFileState
ready installed
stream stream
pid=$(systemctl show -p MainPID --value json-proxy)
sed -n 's/^\(Uid\|CapBnd\|NoNewPrivs\|Seccomp\):\t\([^\t]*\).*/\1=\2/p' "/proc/$pid/status"
echo "sockets=$(nsenter -t "$pid" -m grep -c : /proc/self/net/tcp)"
echo "memory=$(nsenter -t "$pid" -m sh -c 'test -e /proc/meminfo && echo visible || echo hidden')"

kill -KILL "$pid"
wait_property NRestarts 1
ready killed

sed -i 's/^#\([A-Z]\)/\1/' $settings
systemctl restart json-proxy
ready defaults

set_setting WORKERS 2
sh /mnt/systemd/install.sh /mnt/json-proxy >/tmp/install.log
ready binary
stream binary_stream
echo "command=$(sed -n 's/^ExecStart=//p' /etc/systemd/system/json-proxy.service)"
echo "processes=$(wc -l </sys/fs/cgroup/system.slice/json-proxy.service/cgroup.procs)"

redis-cli shutdown nosave
systemctl restart json-proxy
wait_property NRestarts 2
redis-server --save '' --daemonize yes >/tmp/redis.log
ready redis_back

systemctl stop json-proxy
property stop_result Result
set_setting WORKERS x
systemctl start json-proxy
wait_property ActiveState failed
property bad_code ExecMainStatus
property bad_restarts NRestarts

journalctl -u json-proxy -o json --output-fields=PRIORITY,SYSLOG_IDENTIFIER,MESSAGE >/mnt/journal
sh /mnt/systemd/install.sh --uninstall >/tmp/install.log
property uninstalled LoadState
echo "left=$(ls -d /opt/json-proxy /etc/json-proxy.env 2>/dev/null)"
echo end=ok

#!/bin/sh
# Instala o json-proxy como serviço do systemd, ou o atualiza.
#
#   sudo sh scripts/deploy/systemd/install.sh                    o json-proxy.js da raiz do projeto
#   sudo sh scripts/deploy/systemd/install.sh bin/json-proxy     outro arquivo montado, ou o binário
#   sudo sh scripts/deploy/systemd/install.sh --uninstall        desinstala; as configurações ficam
#
# Com DESTDIR=pasta instala dentro dela, sem root e sem falar com o systemd.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}
program_dir=/opt/json-proxy
unit=/etc/systemd/system/json-proxy.service
settings=/etc/json-proxy.env

# Diz o que houve e sai.
# $1: código de saída; $2: a mensagem
fail() {
  echo "install.sh: $2" >&2
  exit "$1"
}

# Diz se há um systemd com quem falar.
has_systemd() {
  [ -z "$root" ] && [ -d /run/systemd/system ]
}

# Acha um Node 20 ou mais novo que o serviço alcance. Escreve o caminho.
find_node() {
  node=$(command -v node) || fail 1 'falta o Node 20 ou mais novo; ou instale o binário'
  node=$(readlink -f "$node")
  case $node in
    /home/* | /root/* | /run/user/*)
      fail 1 "o serviço não alcança $node (ProtectHome); instale o Node para todos, ou o binário"
      ;;
  esac
  "$node" -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' ||
    fail 1 "$node é antigo; o json-proxy precisa do Node 20 ou mais novo"
  echo "$node"
}

# Remove o programa, e a pasta se não sobra nada nela.
remove_program() {
  rm -f "$root$program_dir/json-proxy" "$root$program_dir/json-proxy.js"
  [ ! -d "$root$program_dir" ] || rmdir --ignore-fail-on-non-empty "$root$program_dir"
}

# Põe no lugar o programa, a unidade e, se ainda não há, o arquivo de configurações.
# $1: json-proxy.js ou o binário
install_files() {
  [ -f "$1" ] || fail 1 "não há $1; faça-o com: npm run build"
  name=json-proxy
  command=$program_dir/$name
  launcher=
  if [ "$(head -c 2 "$1")" = '#!' ]; then
    launcher=$(find_node)
    name=json-proxy.js
    command="$launcher $program_dir/$name"
  fi
  version=$($launcher "$(readlink -f "$1")" --version) || fail 1 "$1 não é o json-proxy"
  remove_program
  install -D -m 755 "$1" "$root$program_dir/$name"
  mkdir -p "$root${unit%/*}"
  sed "s|^ExecStart=.*|ExecStart=$command|" "$here/json-proxy.service" >"$root$unit"
  chmod 644 "$root$unit"
  if [ -e "$root$settings" ]; then
    chmod go= "$root$settings" # quem a escreveu à mão talvez deixasse a senha à vista
    echo "$root$settings já existia e ficou como estava, só o dono a lê"
  else
    install -D -m 600 "$here/json-proxy.env" "$root$settings"
  fi
  echo "json-proxy $version instalado: $root$program_dir/$name, $root$unit"
}

# Liga o serviço agora e a cada partida da máquina.
start_service() {
  has_systemd || {
    echo 'o systemd não está rodando aqui; depois: systemctl enable --now json-proxy'
    return
  }
  systemctl daemon-reload
  systemctl enable --quiet json-proxy
  systemctl restart json-proxy
  echo "configurações: $settings, e então: systemctl restart json-proxy"
  echo 'log: journalctl -u json-proxy -f'
}

# Desliga o serviço e remove o que foi instalado, menos as configurações.
uninstall() {
  ! has_systemd || systemctl disable --quiet --now json-proxy 2>/dev/null || :
  remove_program
  rm -f "$root$unit"
  ! has_systemd || systemctl daemon-reload
  echo "json-proxy desinstalado; $root$settings ficou, se existia"
}

[ $# -le 1 ] || fail 2 'no máximo um argumento: o arquivo, ou --uninstall'
case ${1:-} in
  '' | --uninstall | [!-]*) ;;
  *) fail 2 "opção desconhecida: $1; aceito: o arquivo montado, ou --uninstall" ;;
esac
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail 1 'precisa ser root: sudo sh install.sh'
if [ "${1:-}" = --uninstall ]; then
  uninstall
else
  install_files "${1:-$here/../../../json-proxy.js}"
  start_service
fi

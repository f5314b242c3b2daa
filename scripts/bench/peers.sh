#!/bin/sh
# Instala os concorrentes que o banco de provas sabe medir, sem deixar nenhum serviço de pé.
#
#   sh scripts/bench/peers.sh        webdis, nginx e o módulo nchan, pelo apt
set -eu

# Diz ao Debian que nenhum serviço deve subir por ter sido instalado, e desfaz isso na saída.
forbid_services() {
  policy=/usr/sbin/policy-rc.d
  [ ! -e "$policy" ] || return 0
  trap '$runner rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | $runner tee "$policy" >/dev/null
  $runner chmod 755 "$policy"
}

# Instala pacotes do Debian, como root ou com sudo sem senha.
# $@: nomes dos pacotes
apt_install() {
  advice="apt-get install $*"
  runner=
  [ "$(id -u)" = 0 ] || runner='sudo -n'
  if ! command -v apt-get >/dev/null || ! $runner true 2>/dev/null; then
    echo "falta: $*. No Debian, como root: $advice" >&2
    exit 1
  fi
  echo "instalando com apt: $*" >&2
  forbid_services
  log=$(mktemp)
  if ! { $runner apt-get update && $runner env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "o apt não instalou: $*. Tente à mão: $advice" >&2
    exit 1
  fi
  rm -f "$log"
}

if ! command -v webdis >/dev/null || ! [ -e /usr/lib/nginx/modules/ngx_nchan_module.so ]; then
  apt_install webdis nginx libnginx-mod-nchan
fi

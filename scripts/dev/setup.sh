#!/bin/sh
# Instala o que falta para os comandos do projeto, e nada mais.
#
#   sh scripts/dev/setup.sh parte [parte...]
#
#   packages             os pacotes do npm (package-lock.json)
#   redis                redis-server, pelo apt onde houver
#   redis-unless-given   idem, salvo se REDIS_SERVER aponta para um
#   python               python3, redis-py e Flask, para test:extra
#   network              ip e tc, para test:extra; só no Linux
#   openssl              o comando openssl, para test:extra
#   nginx                o nginx, sem que ele suba, para test:extra
#   prometheus           promtool e o prometheus, para test:extra
#   chromium             um Chromium sem janela, para test:extra; só com o apt
#   firefox              um Firefox, para test:extra; só com o apt
#   systemd              systemd-analyze e systemd, para test:extra; só no Linux
#   busybox              o wget das imagens do Docker, para test:extra
#   buildah              monta as imagens do Docker sem ele, para test:extra
#   n8n-package          o que monta o pacote de nós para o n8n
#   n8n-nodes            a descrição dos nós do n8n, para test:extra
#   clients              SDKs e bibliotecas que falam com os workers, para test:extra
#   n8n                  o n8n inteiro (2,3 GB, uns cinco minutos), para test:n8n
#   old-nodes            os Node que já não servem, para test:extra; só no Linux
#   peers                webdis e nginx com nchan, para bench -- --install-peers
set -eu
cd "$(dirname "$0")/../.."

# Os nós são conferidos com os atuais; o n8n que roda é o mais novo que aceita o Node 20.
n8n_nodes=2.41.2
n8n_langchain=2.41.1
n8n_workflow=2.41.0
n8n=2.8.4

# O conjunto dos clientes; o número muda quando a lista de fill_clients muda.
clients=1

# Instala pacotes do Debian, como root ou com sudo sem senha.
# $1: o que dizer a quem não tem apt; demais: nomes dos pacotes
apt_install() {
  advice=$1
  shift
  runner=
  [ "$(id -u)" = 0 ] || runner='sudo -n'
  if ! command -v apt-get >/dev/null || ! $runner true 2>/dev/null; then
    echo "falta: $*. Instale com: $advice" >&2
    exit 1
  fi
  echo "instalando com apt: $*"
  log=$(mktemp)
  if ! { $runner apt-get update && $runner env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "o apt não instalou: $*. Tente à mão: $advice" >&2
    exit 1
  fi
  rm -f "$log"
}

# Instala os pacotes do npm se faltam ou se o package-lock.json mudou desde então.
ensure_packages() {
  [ node_modules/.package-lock.json -nt package-lock.json ] && return
  echo "instalando os pacotes do npm"
  npm ci --no-audit --no-fund --loglevel=error
}

# Instala os pacotes dos sistemas, sem rodar scripts de instalação: nenhum deles precisa.
ensure_backends() {
  command -v curl >/dev/null || apt_install "apt-get install curl" curl
  (
    cd scripts/backends
    [ node_modules/.package-lock.json -nt package-lock.json ] && return
    echo "instalando os pacotes do npm dos sistemas"
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
  )
}

# Instala o que monta o pacote de nós para o n8n.
ensure_n8n_package() {
  (
    cd scripts/n8n/nodes
    [ node_modules/.package-lock.json -nt package-lock.json ] && return
    echo "instalando os pacotes do npm dos nós do n8n"
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
  )
}

# Instala o redis-server.
ensure_redis() {
  command -v redis-server >/dev/null && return
  apt_install "apt-get install redis-server (Debian), dnf install redis (Fedora) ou \
brew install redis (macOS)" redis-server
}

# Instala o Python do sistema com redis-py.
ensure_python() {
  /usr/bin/python3 -c 'import flask, redis' 2>/dev/null && return
  apt_install "apt-get install python3-redis python3-flask, ou pip install redis flask" \
    python3 python3-redis python3-flask
}

# Instala as ferramentas de rede do Linux; nos outros sistemas os testes da rede são pulados.
ensure_network() {
  [ "$(uname)" = Linux ] || return 0
  command -v ip >/dev/null && command -v tc >/dev/null && return
  apt_install "apt-get install iproute2 (Debian) ou dnf install iproute iproute-tc (Fedora)" \
    iproute2
}

# Instala o comando openssl.
ensure_openssl() {
  command -v openssl >/dev/null && return
  apt_install "apt-get install openssl (Debian) ou dnf install openssl (Fedora)" openssl
}

# Instala um Chromium; sem ele os testes do navegador são pulados.
ensure_chromium() {
  for name in chromium chromium-headless-shell chromium-browser google-chrome; do
    command -v $name >/dev/null && return
  done
  (apt_install "no Debian, apt-get install chromium-headless-shell" \
    chromium-headless-shell fonts-dejavu-core) ||
    echo "sem Chromium: os testes do navegador serão pulados" >&2
}

# Instala um Firefox; sem ele os testes dele são pulados.
ensure_firefox() {
  command -v firefox-esr >/dev/null || command -v firefox >/dev/null && return
  (apt_install "no Debian, apt-get install firefox-esr" firefox-esr) ||
    echo "sem Firefox: os testes dele serão pulados" >&2
}

# O que apagar ao sair, também por um Ctrl-C: uma pasta pela metade, e o veto aos serviços.
made=
held=
trap '[ -z "$made$held" ] || rm -rf ${made:+"$made" "$made.log"} ${held:+"$held"}' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Impede, até o fim deste script, que um pacote suba o seu serviço ao ser instalado.
hold_services() {
  policy=/usr/sbin/policy-rc.d
  [ -w /usr/sbin ] && [ ! -e "$policy" ] || return 0
  held=$policy
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
}

# Instala o nginx.
ensure_nginx() {
  PATH=$PATH:/usr/sbin command -v nginx >/dev/null && return
  hold_services
  apt_install "apt-get install nginx (Debian) ou brew install nginx (macOS)" nginx
}

# Instala o Prometheus, que confere as métricas.
ensure_prometheus() {
  command -v promtool >/dev/null && command -v prometheus >/dev/null && return
  hold_services
  apt_install "apt-get install prometheus (Debian) ou brew install prometheus (macOS)" prometheus
}

# Instala o PostgreSQL.
ensure_postgresql() {
  ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && return
  command -v initdb >/dev/null && return
  hold_services
  apt_install "apt-get install postgresql (Debian) ou brew install postgresql (macOS)" postgresql
}

# Instala o systemd, sem que ele passe a rodar; nos outros sistemas os testes dele são pulados.
ensure_systemd() {
  [ "$(uname)" = Linux ] || return 0
  command -v systemd-analyze >/dev/null && return
  apt_install "apt-get install systemd (Debian); noutras, só onde o sistema já é o systemd" systemd
}

# Instala o strace; sem ele, ou noutros sistemas, as chamadas caras não são provadas.
ensure_strace() {
  [ "$(uname)" = Linux ] || return 0
  command -v strace >/dev/null && return
  (apt_install "apt-get install strace (Debian) ou dnf install strace (Fedora)" strace) || true
}

# Instala o busybox, cujo wget é o das imagens alpine.
ensure_busybox() {
  command -v busybox >/dev/null && return
  apt_install "apt-get install busybox (Debian), dnf install busybox (Fedora)" busybox
}

# Instala o buildah; nos outros sistemas os testes das imagens são pulados.
ensure_buildah() {
  [ "$(uname)" = Linux ] || return 0
  command -v buildah >/dev/null && return
  apt_install "apt-get install buildah (Debian) ou dnf install buildah (Fedora)" buildah
}

# Põe no cache, que fica fora do projeto e serve a todos os clones, uma pasta pronta.
# $1: o nome dela; $2: a função que a enche, com ela por diretório corrente
ensure_cached() {
  cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/json-proxy
  [ -e "$cache/$1" ] && return
  mkdir -p "$cache"
  made=$(mktemp -d "$cache/making.XXXXXX")
  echo "baixando $1 para $cache"
  (cd "$made" && "$2") >"$made.log" 2>&1 || true
  if [ ! -e "$made/ready" ]; then
    tail -n 20 "$made.log" >&2
    echo "o npm não instalou $1: confira a rede e repita" >&2
    exit 1
  fi
  [ -e "$cache/$1" ] || mv "$made" "$cache/$1" # outro pode tê-la feito enquanto isso
  rm -rf "$made" "$made.log"
}

# Instala pacotes nesta pasta, sem rodar os scripts dele nem dos seus.
npm_install() {
  npm install --prefix . --ignore-scripts --no-audit --no-fund "$@"
}

# Enche a pasta dos nós: só as descrições deles, e o que o editor do n8n usa para as conferir.
fill_n8n_nodes() {
  npm_install "n8n-workflow@$n8n_workflow" || return
  for package in "n8n-nodes-base@$n8n_nodes" "@n8n/n8n-nodes-langchain@$n8n_langchain"; do
    folder=nodes/${package%@*}
    mkdir -p "$folder"
    file=$(npm pack --silent "$package") || return
    tar -xzf "$file" -C "$folder" package/dist/types || return
    rm "$file"
  done
  touch ready
}

# Enche a pasta dos clientes: cada um com o que precisa, longe do package.json do projeto.
fill_clients() {
  npm_install openai@6.49.0 ai@6.0.326 @ai-sdk/openai-compatible@2.0.92 @langchain/openai@1.5.8 \
    @langchain/core@1.4.0 langchain-core-0.3@npm:@langchain/core@0.3.80 @anthropic-ai/sdk@1.13.0 \
    @modelcontextprotocol/sdk@1.32.2 eventsource@4.1.1 @microsoft/fetch-event-source@2.0.1 \
    zod@4.6.7 hono@4.13.19 graphql@16.15.0 graphql-yoga@5.24.1 && touch ready
}

# Enche a pasta do n8n. O xlsx dele vem de um site à parte, e não do npm: vai o do npm.
fill_n8n() {
  printf '{"private":true,"overrides":{"xlsx":"0.18.5"}}\n' >package.json
  npm_install "n8n@$n8n" && npm rebuild --prefix . sqlite3 &&
    node_modules/.bin/n8n --version && touch ready
}

# Enche a pasta dos Node que já não servem, do npm: só o executável de cada um.
fill_old_nodes() {
  processor=$(uname -m | sed 's/x86_64/x64/; s/aarch64/arm64/')
  for version in 12.22.12 14.21.3 16.20.2 18.20.4; do
    file=$(npm pack --silent "node-linux-$processor@$version") || return
    tar -xzf "$file" package/bin/node || return
    mv package/bin/node "v$version"
    rm "$file"
  done
  touch ready
}

# Instala os Node que já não servem; nos outros sistemas os testes deles são pulados.
ensure_old_nodes() {
  [ "$(uname)" = Linux ] || return 0
  ensure_cached old-nodes-1 fill_old_nodes
}

# Instala os concorrentes que o bench sabe medir.
ensure_peers() {
  command -v webdis >/dev/null && [ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] && return
  hold_services
  apt_install "no Debian, apt-get install webdis nginx libnginx-mod-nchan" \
    webdis nginx libnginx-mod-nchan
}

for part in "$@"; do
  case $part in
    packages) ensure_packages ;;
    redis) ensure_redis ;;
    redis-unless-given) [ -n "${REDIS_SERVER:-}" ] || ensure_redis ;;
    backends) ensure_backends ;;
    postgresql) ensure_postgresql ;;
    python) ensure_python ;;
    network) ensure_network ;;
    openssl) ensure_openssl ;;
    nginx) ensure_nginx ;;
    prometheus) ensure_prometheus ;;
    chromium) ensure_chromium ;;
    firefox) ensure_firefox ;;
    systemd) ensure_systemd ;;
    strace) ensure_strace ;;
    busybox) ensure_busybox ;;
    buildah) ensure_buildah ;;
    n8n-package) ensure_n8n_package ;;
    n8n-nodes) ensure_cached "n8n-nodes-$n8n_nodes" fill_n8n_nodes ;;
    clients) ensure_cached "clients-$clients" fill_clients ;;
    n8n) ensure_cached "n8n-$n8n" fill_n8n ;;
    old-nodes) ensure_old_nodes ;;
    peers) ensure_peers ;;
    *)
      echo "parte desconhecida: $part; aceito: packages redis redis-unless-given python network \
openssl nginx prometheus chromium firefox systemd strace busybox buildah n8n-package n8n-nodes \
clients n8n old-nodes backends postgresql peers" >&2
      exit 2
      ;;
  esac
done

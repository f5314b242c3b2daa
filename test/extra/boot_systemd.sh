#!/bin/sh
# Sobe um systemd de verdade, com o sistema desta máquina visto por uma camada descartável (overlay)
# e sem rede além da própria; roda um script nele, como um serviço; e desce.
#
#   sh boot_systemd.sh pasta      a pasta aparece lá como /mnt; roda /mnt/script, escreve /mnt/log
#
# Precisa ser root. Sai com 77 se esta máquina não permite.
set -eu

# Diz por que não dá, e sai.
cannot() {
  echo "boot_systemd.sh: $1" >&2
  exit 77
}

# Monta a raiz do systemd em $1, com a pasta $2 em /mnt.
make_root() {
  mount -t tmpfs tmpfs "$1"
  mkdir "$1/upper" "$1/work" "$1/root"
  mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
  cd "$1/root"
  mount --bind "$2" mnt
  mount -t proc proc proc
  mount -t sysfs sysfs sys
  mount -t cgroup2 cgroup2 sys/fs/cgroup
  for dir in dev run tmp; do mount -t tmpfs tmpfs $dir; done
  for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
  done
  mkdir dev/pts dev/shm
  mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
  ln -s pts/ptmx dev/ptmx
  ln -s /proc/self/fd dev/fd
}

# Escreve as unidades: o serviço que roda o script, e o alvo que só quer ele e o journal. O que
# mexeria com o núcleo, que é o desta máquina, fica mascarado.
write_units() {
  units=etc/systemd/system
  for name in modules-load remount-fs sysctl binfmt udevd udev-trigger random-seed logind; do
    ln -sf /dev/null $units/systemd-$name.service
  done
  cat >$units/script.service <<UNIT
[Unit]
DefaultDependencies=no
After=systemd-journald.service
[Service]
Type=oneshot
TimeoutStartSec=60
StandardOutput=file:/mnt/log
StandardError=inherit
ExecStart=/bin/sh /mnt/script
ExecStopPost=/bin/systemctl --no-block exit
UNIT
  cat >$units/script.target <<UNIT
[Unit]
DefaultDependencies=no
Requires=systemd-journald.socket systemd-journald.service
Wants=script.service
UNIT
}

if [ "${2:-}" = inside ]; then
  scratch=$1/scratch
  mkdir "$scratch"
  mount --make-rprivate /
  make_root "$scratch" "$1" || cannot 'as montagens foram recusadas'
  write_units
  ip link set lo up
  mkdir -p old
  pivot_root . old
  exec env -i container=other /bin/sh -c 'cd / && umount -l old && exec /lib/systemd/systemd \
    --system --unit=script.target --log-target=journal'
fi

[ "$(id -u)" = 0 ] || cannot 'precisa ser root'
cgroups=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
[ -n "$cgroups" ] || cannot 'não há cgroup v2'
cgroup=$cgroups/json-proxy-$$
mkdir "$cgroup" || cannot 'o cgroup foi recusado'
here=$(readlink -f "$0")
sh -c "echo \$\$ >$cgroup/cgroup.procs && exec unshare --mount --pid --fork --uts --ipc --cgroup \
  --net --kill-child sh $here $1 inside" &
inside=$!

# Derruba o que ainda roda, espera, e remove o cgroup.
clean() {
  kill -KILL $inside 2>/dev/null || :
  wait $inside || :
  until find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.1; done
}
trap clean EXIT
trap 'exit 1' TERM INT
wait $inside

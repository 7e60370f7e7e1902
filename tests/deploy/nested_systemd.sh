# systemd as the first process of namespaces of their own, with deploy/systemd installed: nothing of
# the machine is seen or changed. Arguments: the repository, its Python, Python's installation.
set -e
repository=$1 python=$2 installation=$3
mount --make-rprivate /
mount -t proc proc /proc
for folder in /run /var/log /var/lib/systemd /etc/systemd/system /opt; do
    mount -t tmpfs -o mode=755 tmpfs "$folder"
done
umount -R /sys/fs/cgroup
mount -t sysfs sysfs /sys
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up
home=~root
mkdir /run/home
for folder in "$installation" "$repository"; do
    if [[ "$folder" == "$home"/* ]]; then  # which only root may enter
        mkdir -p "/run/home/${folder#"$home"/}"
        mount --bind "$folder" "/run/home/${folder#"$home"/}"
    fi
done
mount --rbind /run/home "$home"
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket \
    systemd-udevd-control.socket systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service \
    systemd-sysctl.service systemd-modules-load.service systemd-random-seed.service tmp.mount \
    systemd-journald-audit.socket proc-sys-fs-binfmt_misc.automount; do
    ln -s /dev/null "/etc/systemd/system/$unit"
done
mkdir -p /opt/digit-serving/bin /etc/systemd/system/digit-serving.service.d
printf '#!/bin/sh\ncd "%s" && exec "%s" -m serving "$@"\n' "$repository" "$python" >/opt/digit-serving/bin/digit-serving
chmod 755 /opt/digit-serving/bin/digit-serving
cp "$repository"/deploy/systemd/* /etc/systemd/system/
cat >/etc/systemd/system/digit-serving.service.d/test.conf <<END
[Service]
Environment=PYTHONPATH=$repository
# Its Python may be in a home, and the repository in /tmp.
ProtectHome=no
BindReadOnlyPaths=$repository
WatchdogSec=4
END
export container=lxc
exec /lib/systemd/systemd --system --unit=basic.target

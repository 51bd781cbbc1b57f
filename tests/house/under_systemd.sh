# In a namespace of its own: a small system whose pid 1 is systemd. $1: the folder with its parts.
set -e
mount --make-rprivate /
mount -t proc proc /proc
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mount -t tmpfs tmpfs /var/lib
cp -r "$1/etc" /run/etc
cp /etc/nsswitch.conf /etc/ld.so.cache /etc/machine-id /run/etc/ 2>/dev/null || true
mount --bind /run/etc /etc
mount --rbind "$1/opt" /opt
number=0
while read -r path; do  # what of Python is below a home, which services do not see
    mkdir -p "/opt/parts/$number"
    mount --bind "$path" "/opt/parts/$number"
    number=$((number + 1))
done < "$1/parts"
export container=lxc SYSTEMD_UNIT_PATH="$1/units" SYSTEMD_LOG_TARGET=console
exec /lib/systemd/systemd --system --unit=posthouse-test.target

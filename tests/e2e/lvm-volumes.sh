#!/bin/sh
# Makes the image $1 a physical volume with a volume group vg0 and two volumes of which the first
# is in two pieces, by LVM's own programs; no device mapper is needed. Prints where the volumes'
# bytes are: volume, first byte, place in the image, bytes.
set -e
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
loop=$($sudo /sbin/losetup -f --show "$1")
trap '$sudo /sbin/losetup -d "$loop"' EXIT
only="[\"a|^$loop\$|\",\"r|.*|\"]"
config="devices { use_devicesfile=0 filter=$only global_filter=$only }
backup { backup=0 archive=0 } activation { udev_sync=0 udev_rules=0 monitoring=0 }"
lvm() {
	command=$1
	shift
	$sudo /sbin/lvm "$command" --nolocking --driverloaded n --config "$config" "$@" 2>&1
}
lvm pvcreate -y "$loop" >/dev/null
lvm vgcreate -y -s 4M vg0 "$loop" >/dev/null
lvm lvcreate -y -an -Zn -Wn -L 4M -n guest-swap vg0 >/dev/null
lvm lvcreate -y -an -Zn -Wn -L 48M -n guest-root vg0 >/dev/null
lvm lvextend -y -L +4M vg0/guest-swap >/dev/null
lvm pvs --noheadings --segments --units b --nosuffix \
	-o lv_name,seg_start,pvseg_start,pvseg_size,pe_start,vg_extent_size | grep '^ *guest-' |
	while read -r volume from first count start extent; do
		echo "$volume $from $((start + first * extent)) $((count * extent))"
	done

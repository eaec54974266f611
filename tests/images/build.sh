#!/bin/sh
# Builds a disk image of a Debian system as the administrator of a Xen PV guest
# would: a partition table, ext4, Debian's kernel and initramfs in /boot, grub.cfg
# as update-grub writes it. Runs as root; needs neither loop devices nor a mount.
#
# Settings, all from the environment:
#   OUT         the image file to make; TMP, a directory for what comes before
#   SUITE       bookworm, trixie, ...
#   SOURCES     file of apt sources; APTCONF, file of apt settings
#   TABLE       gpt or dos; SIZE_MIB, the image's size
#   ROOT_BY     uuid or device: what fstab and the kernel's command line name
#   UUID        of the root file system, and what other identities are made of
#   PACKAGES    what to install beyond Debian's essential packages
#   EPOCH       the time stamped on what is made (seconds)
set -eu

tree=$TMP/tree
start_mib=1
part_uuid=$(echo "$UUID" | tr 0-9a-f a-f0-9)
export SOURCE_DATE_EPOCH="$EPOCH"
case $TABLE in
gpt) grub_map=gpt type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709 id=$part_uuid ;;
dos) grub_map=msdos type=83 id=0x$(echo "$UUID" | cut -c1-8) ;;
*) echo "TABLE=$TABLE: gpt or dos" >&2; exit 1 ;;
esac
case $ROOT_BY in
uuid) root_name=UUID=$UUID ;;
device) root_name=/dev/xvda1 ;;
*) echo "ROOT_BY=$ROOT_BY: uuid or device" >&2; exit 1 ;;
esac

# What mmdebstrap calls when the packages are there.
customize() {
	root=$1
	# The workstation's settings, its proxies among them.
	rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap"
	echo pontoon-guest >"$root/etc/hostname"
	printf '127.0.0.1\tlocalhost\n127.0.1.1\tpontoon-guest\n' >"$root/etc/hosts"
	echo "$UUID" | tr -d - >"$root/etc/machine-id"
	echo 'root:pontoon' | chroot "$root" chpasswd
	printf '%s / ext4 errors=remount-ro 0 1\n' "$root_name" >"$root/etc/fstab"
	printf '[Match]\nName=eth* enX*\n[Network]\nDHCP=yes\n' \
		>"$root/etc/systemd/network/50-guest.network"
	chroot "$root" systemctl --quiet enable systemd-networkd.service
	cat >"$root/etc/default/grub" <<-END
		GRUB_DEFAULT=0
		GRUB_TIMEOUT=5
		GRUB_DISTRIBUTOR=Debian
		GRUB_CMDLINE_LINUX_DEFAULT=""
		GRUB_CMDLINE_LINUX="console=hvc0"
	END
	grub_menu "$root"
}

# grub-mkconfig asks grub-probe what / lies on. Here that is a directory; what it
# will be in the guest is known.
grub_menu() {
	root=$1
	device="$grub_map"1
	mv "$root/usr/sbin/grub-probe" "$root/usr/sbin/grub-probe.real"
	cat >"$root/usr/sbin/grub-probe" <<-END
		#!/bin/sh
		while [ \$# -gt 0 ]; do
			case \$1 in
			-t) target=\$2; shift ;;
			--target=*) target=\${1#*=} ;;
			esac
			shift
		done
		case \$target in
		device) echo /dev/xvda1 ;;
		disk) echo /dev/xvda ;;
		drive) echo "(hd0,$device)" ;;
		fs) echo ext2 ;;
		fs_uuid) echo $UUID ;;
		partmap) echo $grub_map ;;
		partuuid) echo $part_uuid ;;
		compatibility_hint) echo hd0,$device ;;
		hints_string) echo "--hint-bios=hd0,$device --hint-xen=xen/xvda,$device" ;;
		esac
	END
	chmod 755 "$root/usr/sbin/grub-probe"
	mkdir -p "$root/boot/grub" "$root/dev/disk/by-uuid"
	# Without it, grub-mkconfig names the device.
	[ "$ROOT_BY" = device ] || touch "$root/dev/disk/by-uuid/$UUID"
	chroot "$root" grub-mkconfig -o /boot/grub/grub.cfg
	rm -rf "$root/dev/disk"
	mv "$root/usr/sbin/grub-probe.real" "$root/usr/sbin/grub-probe"
}

if [ "${1-}" = customize ]; then
	customize "$2"
	exit
fi

mmdebstrap --quiet --mode=root --format=directory --variant=minbase \
	--aptopt="$APTCONF" --aptopt='APT::Install-Recommends "false"' \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--include="$PACKAGES" \
	--customize-hook="sh $0"' customize "$1"' \
	"$SUITE" "$tree" "$SOURCES"

# The copy of a GPT lies at the end; sfdisk rounds sizes to MiB.
fs_mib=$((SIZE_MIB - start_mib - 1))
rm -f "$OUT"
truncate -s "${SIZE_MIB}M" "$OUT"
printf 'label: %s\nlabel-id: %s\nstart=%sMiB, size=%sMiB, type=%s, bootable%s\n' \
	"$TABLE" "$id" $start_mib $fs_mib "$type" \
	"$([ "$TABLE" = gpt ] && echo ", uuid=$part_uuid")" | sfdisk -q "$OUT"
mke2fs -q -F -t ext4 -d "$tree" -U "$UUID" -L rootfs \
	-E "offset=$((start_mib * 1048576)),hash_seed=$UUID,root_owner=0:0" "$OUT" ${fs_mib}M
# Whoever asked for it may be no root.
chown --reference="$(dirname "$OUT")" "$OUT"

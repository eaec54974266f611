# In front of the disk tests' scripts, which have `fail`: fio, from a disk of programs. What began is
# said, and what failed.

# Makes the programs on a disk ready.
tools() {
	mkdir /tools
	mount -t ext4 -o ro "/dev/$1" /tools || fail 'mount tools'
	mount -t devtmpfs devtmpfs /tools/dev
	mount -t tmpfs tmpfs /tools/tmp
	mount -t proc proc /tools/proc
}

fio() {
	echo "@@ fio $*"
	chroot /tools /usr/bin/fio --name=job --verify=crc32c --verify_fatal=1 \
		--exitall_on_error --group_reporting --output-format=terse --end_fsync=1 \
		--randrepeat=0 "$@" >/tmp/fio 2>&1 && return
	fail "fio $*"
	cat /tmp/fio
}


# Behind first.sh, the first process of an imported guest: says which disks and network cards it has. On
# the command line: pontoon_disks= and pontoon_cards=, what there has to be.

# Waits up to 60 s for so many names.
wait_for() {
	n=0
	while [ "$(ls -d $2 2>/dev/null | wc -l)" -lt "$1" ]; do
		n=$((n + 1))
		if [ $n -gt 600 ]; then
			echo "@@ failed to find $1 of $2"
			return
		fi
		usleep 100000
	done
}

wait_for "$disks" '/sys/block/xvd* /sys/block/sd* /sys/block/hd*'
wait_for "$cards" '/sys/class/net/eth*'
echo "@@ cmdline $(cat /proc/cmdline)"
echo "@@ cpus $(grep -c ^processor /proc/cpuinfo)"
echo "@@ uuid $(cat /sys/hypervisor/uuid)"
for disk in /sys/block/*; do
	name=${disk##*/}
	case $name in
	ram* | loop*) continue ;;
	esac
	sum=$(md5sum <"/dev/$name")
	echo "@@ disk-$name $(cat "$disk/size") $(cat "$disk/ro") ${sum%% *}"
done
for card in /sys/class/net/eth*; do
	echo "@@ card-${card##*/} $(cat "$card/address")"
done
echo '@@ end'
poweroff -f
sleep 60

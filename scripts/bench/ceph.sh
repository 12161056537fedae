#!/bin/bash
# A Ceph cluster of six OSDs on files, as a peer of the comparison. Debian packages:
#   ceph-mon ceph-mgr ceph-osd ceph-common qemu-block-extra (apt-get install --no-install-recommends)
#   CEPH_DIR=DIR scripts/bench/ceph.sh start [SIZE]   prints ceph-rep=URI@PIDFILE,ceph-ec=URI@PIDFILE
#   CEPH_DIR=DIR scripts/bench/ceph.sh stop           ends it by its process ids and deletes DIR
# CEPH_POOLS (rep ec) chooses; CEPH_OSD_SIZE (4 GiB) is each OSD's. All of it listens on loopback,
# without authentication. Images are served by qemu-nbd without a cache of librbd's.
set -euo pipefail
: "${CEPH_DIR:?where may the cluster live? (a folder of its own)}"
dir=$CEPH_DIR conf=$CEPH_DIR/ceph.conf log=$CEPH_DIR/commands.log osds=6
export CEPH_ARGS="" # nothing of the user's

die() { echo "ceph.sh: $*" >&2; exit 1; }
quietly() { "$@" >>"$log" 2>&1 || die "$1 failed, see $log: $(tail -n 1 "$log")"; }
ceph() { timeout 60 ceph -c "$conf" "$@" 2>>"$log"; } # timeout runs the program, not this function

daemon() { # daemon PIDFILE COMMAND...: runs it in the background, in a session of its own
	local pids=$1
	shift
	setsid "$@" >>"$dir/$(basename "$1").log" 2>&1 </dev/null &
	echo $! >>"$pids"
}

until_true() { # until_true SECONDS WHAT COMMAND...
	local deadline=$((SECONDS + $1)) what=$2
	shift 2
	until "$@"; do
		[ $SECONDS -lt $deadline ] || die "no $what in time, see $dir"
		sleep 0.3
	done
}

configure() {
	cat >"$conf" <<-TEXT
		[global]
		fsid = $(cat /proc/sys/kernel/random/uuid)
		mon host = [v2:127.0.0.1:13300,v1:127.0.0.1:16789]
		public addr = 127.0.0.1
		cluster addr = 127.0.0.1
		auth cluster required = none
		auth service required = none
		auth client required = none
		run dir = $dir/run
		admin socket = $dir/run/\$name.asok
		log file = $dir/run/\$name.log
		pid file = $dir/run/\$name.pid
		crash dir = $dir/run
		keyring = $dir/keyring
		osd pool default size = 3
		osd pool default min size = 2
		osd crush chooseleaf type = 0
		mon data avail warn = 1
		mon data = $dir/mon
		mgr data = $dir/mgr
		osd data = $dir/osd/\$id
		osd objectstore = bluestore
		bluestore block create = true
		bluestore block size = ${CEPH_OSD_SIZE:-4294967296}
		osd memory target = 1073741824
		osd scrub load threshold = 0.01
		osd class update on start = false
	TEXT
}

all_up() { [ "$(ceph osd stat -f json | grep -o '"num_up_osds":[0-9]*' | cut -d: -f2)" = "$osds" ]; }
all_clean() { ! ceph pg ls -f json | grep -Eo '"state":"[^"]*"' | grep -qv '"active+clean"'; }
answers() { nbdinfo --size "$1" >/dev/null 2>&1; }

cluster() {
	local i uuid fsid
	mkdir -p "$dir"/{mon,mgr,run,osd}
	: >"$dir/keyring"
	configure
	fsid=$(sed -n 's/^fsid = //p' "$conf")
	quietly monmaptool --create --addv a '[v2:127.0.0.1:13300,v1:127.0.0.1:16789]' --fsid "$fsid" "$dir/monmap"
	quietly ceph-mon --mkfs -i a --monmap "$dir/monmap" -c "$conf"
	daemon "$dir/cluster.pids" ceph-mon -f -i a -c "$conf"
	daemon "$dir/cluster.pids" ceph-mgr -f -i x -c "$conf"
	until_true 60 "answer of the monitor" ceph -s >/dev/null
	for ((i = 0; i < osds; i++)); do
		uuid=$(cat /proc/sys/kernel/random/uuid)
		mkdir -p "$dir/osd/$i"
		quietly ceph osd new "$uuid" "$i"
		quietly ceph-osd --mkfs -i "$i" --osd-uuid "$uuid" -c "$conf"
		daemon "$dir/cluster.pids" ceph-osd -f -i "$i" -c "$conf"
	done
	until_true 120 "$osds OSDs" all_up
	quietly ceph osd erasure-code-profile set e42 k=4 m=2 plugin=jerasure crush-failure-domain=osd
	quietly ceph osd pool create rep 32 32 replicated
	quietly ceph osd pool create ec 32 32 erasure e42
	quietly ceph osd pool set ec allow_ec_overwrites true
	for i in rep ec; do
		quietly ceph osd pool set "$i" pg_autoscale_mode off
		quietly ceph osd pool application enable "$i" rbd
	done
	until_true 120 "clean placement groups" all_clean
}

image() { # image POOL SIZE: serves an image in the pool and prints the target
	local name=ceph-$1 size=$2 pool=()
	[ "$1" = rep ] || pool=(--data-pool "$1") # the image's metadata cannot be erasure coded
	quietly rbd -c "$conf" create "rep/$name" --size "$size" --image-feature layering "${pool[@]}"
	daemon "$dir/$name.pids" qemu-nbd --persistent --shared=0 -k "$dir/$name.sock" -f raw --cache=none "rbd:rep/$name:conf=$conf"
	until_true 30 "NBD answer" answers "nbd+unix:///?socket=$dir/$name.sock"
	cat "$dir/cluster.pids" "$dir/$name.pids" >"$dir/$name.watch"
	echo "$name=nbd+unix:///?socket=$dir/$name.sock@$dir/$name.watch"
}

start() {
	local tool pool out=()
	for tool in ceph-mon ceph-mgr ceph-osd rbd monmaptool qemu-nbd nbdinfo; do
		command -v "$tool" >/dev/null || die "$tool is missing; the head of this script lists the packages"
	done
	mkdir -p "$dir"
	cluster
	for pool in ${CEPH_POOLS:-rep ec}; do out+=("$(image "$pool" "$1")"); done
	(IFS=,; echo "${out[*]}")
}

stop() { # qemu-nbd first: it needs the cluster
	local pid
	for pid in $(cat "$dir"/ceph-*.pids "$dir/cluster.pids" 2>/dev/null); do kill "$pid" 2>/dev/null || true; done
	for pid in $(cat "$dir"/ceph-*.pids "$dir/cluster.pids" 2>/dev/null); do
		for _ in {1..100}; do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
		kill -9 "$pid" 2>/dev/null || true
	done
	rm -rf "$dir"
}

case ${1:-} in
start) start "${2:-1G}" ;;
stop) stop ;;
*) die "usage: CEPH_DIR=DIR $0 start [SIZE] | stop" ;;
esac

#!/bin/busybox sh
# What the demo guest runs: a web page that counts, servers for tests of the network (server.lua), and
# a console that proves, line by line, that this machine has lost nothing of its memory.
#
#   colo-boot nonce=<hex> chain=<sha256> file=<sha256>      once
#   colo-tick <n> up=<seconds> chain=<sha256> file=ok|BAD   twice a second, n = 1, 2, 3...
#   colo-load KIND                                          once, when the load has been prepared
#
#   chain of the boot line = sha256("colo" followed by the nonce's digits)
#   chain of tick n        = sha256("<previous chain> <n>"), no newline
#   file                   = checksum of random bytes written at boot, checked anew at each tick
#
# Kernel parameters:
#
#   colo.ip=ADDRESS/PREFIX   address of eth0 (default 10.0.2.15/24, with the gateway 10.0.2.2)
#   colo.ip6=ADDRESS/PREFIX  IPv6 address of eth0 (default: eth0 has no IPv6)
#   colo.gateway=ADDRESS     default route, of IPv4
#   colo.file_kib=N          size of the random file (default 1024)
#   colo.load=KIND           what runs besides:
#     tick                     the ticks alone (default)
#     idle                     nothing, not even the ticks
#     small-writes             rewrites a few bytes of each of load_pages pages every load_ms
#     sweep                    rewrites load_pages pages (a multiple of 64) every load_ms, with a few
#                              bytes of each changed: many more pages than small-writes can reach
#     text                     rewrites a file of load_pages pages of words every load_ms
#     random                   fills load_pages pages with random bytes every load_ms
#   colo.load_pages=N        default 256
#   colo.load_ms=N           default 100
#   colo.end=KIND            how it ends: poweroff, reboot, or panic, by QEMU's device pvpanic
#   colo.end_tick=N          at this tick (default 16)

/bin/busybox mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS0 2>&1
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run

ip= ip6= gateway= file_kib=1024 load=tick load_pages=256 load_ms=100
end= end_tick=16
for word in $(cat /proc/cmdline); do
  case $word in
    colo.ip=*) ip=${word#*=} ;;
    colo.ip6=*) ip6=${word#*=} ;;
    colo.gateway=*) gateway=${word#*=} ;;
    colo.file_kib=*) file_kib=${word#*=} ;;
    colo.load=*) load=${word#*=} ;;
    colo.load_pages=*) load_pages=${word#*=} ;;
    colo.load_ms=*) load_ms=${word#*=} ;;
    colo.end=*) end=${word#*=} ;;
    colo.end_tick=*) end_tick=${word#*=} ;;
  esac
done
[ -n "$ip" ] || gateway=${gateway:-10.0.2.2}

# The address counts at once, and nobody is asked for a router.
use_ip6() {
  settings=/proc/sys/net/ipv6/conf/eth0
  echo 0 >$settings/accept_ra
  echo 0 >$settings/accept_dad
  echo 0 >$settings/router_solicitations
  echo 0 >$settings/disable_ipv6
  ip -6 address add "$ip6" dev eth0
}

for module in $(cat /modules/order); do insmod "/modules/$module.ko"; done
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
  ip address add "${ip:-10.0.2.15/24}" dev eth0
  [ -z "$ip6" ] || use_ip6
  ip link set eth0 up
  [ -z "$gateway" ] || ip route add default via "$gateway"
fi

dd if=/dev/urandom of=/run/file bs=1024 count="$file_kib" 2>/dev/null
set -- $(sha256sum /run/file)
file=$1
nonce=$(head -c 16 /dev/urandom | xxd -p)
set -- $(printf 'colo%s' "$nonce" | sha256sum)
chain=$1
httpd -h /www
# Under emulation, code that is written while it runs costs more than it saves.
LUA_CPATH='/lib/?.so' luajit -joff /server.lua &

# Hundredths of a second since boot, into $now and, as the kernel writes it, $up.
read_clock() {
  read -r up _ </proc/uptime
  now=${up%.*}${up#*.}
  while [ "$now" != "${now#0}" ]; do now=${now#0}; done
  now=${now:-0}
}

# Sleep until the clock shows $1; not at all when that has passed.
sleep_until() {
  read_clock
  left=$(($1 - now))
  [ "$left" -le 0 ] || usleep "${left}0000"
}

small_writes() {
  mkdir /run/load
  page=$(head -c 2047 /dev/urandom | xxd -p | tr -d '\n')
  i=0
  while [ "$i" -lt "$load_pages" ]; do
    printf %s "$page" >"/run/load/$i"
    i=$((i + 1))
  done
  echo "colo-load small-writes"
  round=0
  set -- /run/load/*
  read_clock
  next=$now
  while :; do
    round=$((round + 1))
    for page; do printf %s "$round" 1<>"$page"; done
    next=$((next + load_ms / 10))
    sleep_until "$next"
  done
}

sweep() {
  page=$(head -c 2040 /dev/urandom | xxd -p | tr -d '\n')
  pieces= i=0
  while [ "$i" -lt "$load_pages" ]; do
    pieces="$pieces /run/piece"
    i=$((i + 64))
  done
  echo "colo-load sweep"
  round=0
  read_clock
  next=$now
  while :; do
    round=$((round + 1))
    i=0
    while [ "$i" -lt 64 ]; do
      printf '%s%016d' "$page" "$round"
      i=$((i + 1))
    done >/run/piece
    cat $pieces 1<>/run/load
    next=$((next + load_ms / 10))
    sleep_until "$next"
  done
}

# The words of a vocabulary, the frequent ones more often, in an order that starts elsewhere each time.
text_churn() {
  bytes=$((load_pages * 4096))
  awk -v bytes="$bytes" 'BEGIN {
    for (i = 0; i < 4000; i++) {
      for (j = 2 + int(rand() * 9); j > 0; j--) word[i] = word[i] sprintf("%c", 97 + int(rand() * 26))
    }
    while (written < bytes) {
      next_word = word[int(rand() * rand() * rand() * 4000)] " "
      printf "%s", next_word
      written += length(next_word)
    }
  }' >/run/words
  echo "colo-load text"
  at=0
  read_clock
  next=$now
  while :; do
    at=$(((at + 123457) % bytes))
    { tail -c "+$at" /run/words; head -c "$at" /run/words; } >/run/text
    next=$((next + load_ms / 10))
    sleep_until "$next"
  done
}

random_writes() {
  echo "colo-load random"
  read_clock
  next=$now
  while :; do
    dd if=/dev/urandom of=/run/load bs=4096 count="$load_pages" conv=notrunc 2>/dev/null
    next=$((next + load_ms / 10))
    sleep_until "$next"
  done
}

tick_forever() {
  n=0
  read_clock
  next=$now
  while :; do
    next=$((next + 50))
    sleep_until "$next"
    n=$((n + 1))
    set -- $(printf '%s %s' "$chain" "$n" | sha256sum - /run/file)
    chain=$1
    verdict=ok
    [ "$3" = "$file" ] || verdict=BAD
    echo "colo-tick $n up=$up chain=$chain file=$verdict"
    [ "$n" != "$end_tick" ] || end_now
  done
}

# This kernel has neither a driver for pvpanic nor /dev/port: mov dx, 0x505; mov al, 1; out dx, al; ret
tell_pvpanic='
  local ffi = require "ffi"
  ffi.cdef "int iopl(int); void *mmap(void *, size_t, int, int, int, long);"
  ffi.C.iopl(3)
  local code = ffi.C.mmap(nil, 4096, 7, 34, -1, 0)
  ffi.copy(code, "\x66\xba\x05\x05\xb0\x01\xee\xc3")
  ffi.cast("void (*)(void)", code)()'

end_now() {
  case $end in
    poweroff | reboot) $end -f ;;
    panic) luajit -e "$tell_pvpanic" ;;
  esac
}

echo "colo-boot nonce=$nonce chain=$chain file=$file"
case $load in
  idle) while :; do sleep 1000000; done ;;
  small-writes) small_writes & ;;
  sweep) sweep & ;;
  text) text_churn & ;;
  random) random_writes & ;;
esac
tick_forever

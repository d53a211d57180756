#!/bin/sh
# /cgi-bin/counter: a number that goes up by one at each request.

until mkdir /run/counter.lock 2>/dev/null; do usleep 10000; done
n=0
[ ! -e /run/counter ] || read -r n </run/counter
n=$((n + 1))
echo "$n" >/run/counter
rmdir /run/counter.lock
printf 'Content-Type: text/plain\r\n\r\n%s\n' "$n"

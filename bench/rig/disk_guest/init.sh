#!/bin/busybox sh
# The demo guest with a database on its first disk (disk.lua), which is made anew at each boot.

# What runs beside needs /dev/null; that it is mounted already does /init no harm.
/bin/busybox mount -t devtmpfs dev /dev
{
  until [ -e /run/file ] && [ -e /dev/vda ]; do /bin/busybox usleep 50000; done
  mke2fs /dev/vda >/dev/null
  mkdir /data
  mount -t ext4 /dev/vda /data
  LUA_CPATH='/lib/?.so' luajit -joff /disk.lua
} >/run/disk.log 2>&1 &
exec /init

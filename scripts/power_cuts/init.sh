#!/bin/busybox sh
# PID 1 of the guest. The host's root is its root, read-only, through hostfs: host programs run inside, and only /run and
# the guest's own disks can be written. `job`, a shell script, comes from the kernel command line as a variable.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t tmpfs tmpfs /run
/bin/busybox mkdir -p /run/disk /run/scratch
/bin/busybox ifconfig lo 127.0.0.1 up
/bin/busybox sh "$job"
echo "JOB ENDED $?"
/bin/busybox poweroff -f

#!/usr/bin/env bash
# Start a real one-node Slurm in a temporary folder, run a command under it, and stop it whatever happens.
#
#   bash tests/cluster/one_node_slurm.sh COMMAND [ARGUMENT...]      exits with the command's status
#
# The command sees SLURM_CONF (so sbatch, squeue and scontrol just work) and SLURM_TEST_DIR, the folder that has the logs
# and completed_jobs.txt, where slurmctld writes one line per job that ended. Nothing outside the folder is changed: own
# key, own socket, own ports on 127.0.0.1. Needs root, and Debian's packages munge slurm-client slurmctld slurmd.
set -euo pipefail

if (($# == 0)); then
    echo "usage: one_node_slurm.sh COMMAND [ARGUMENT...]" >&2
    exit 2
fi
if ((EUID != 0)); then
    echo "a one-node Slurm has to be started by root (it starts jobs as their users); you are $(id -un)" >&2
    exit 2
fi
PATH=$PATH:/usr/sbin
for program in munged slurmctld slurmd sbatch scontrol; do
    command -v "$program" >/dev/null || {
        echo "'$program' not found; on Debian: apt-get install munge slurm-client slurmctld slurmd" >&2
        exit 2
    }
done

dir=$(mktemp -d "${TMPDIR:-/tmp}/one-node-slurm.XXXXXX")
daemons=() # process ids, in starting order
command="" # process id, and id of its process group
slurm_is_up=""

stop() {
    status=$?
    trap - EXIT
    if ((status != 0)); then
        for log in slurmctld slurmd munged; do
            printf '\n--- last lines of %s.log\n' "$log" >&2
            tail -n 15 "$dir/$log.log" >&2 2>/dev/null || true
        done
    fi
    # Jobs first, while Slurm can still end them: they belong to step daemons that would outlive slurmd.
    if [ -n "$slurm_is_up" ]; then
        timeout 5 scancel --quiet --user="$(id -un)" || true
        for _ in $(seq 50); do
            [ -n "$(timeout 5 squeue --noheader 2>/dev/null)" ] || break
            sleep 0.2
        done
    fi
    [ -z "$command" ] || kill -- "-$command" 2>/dev/null || true
    for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do
        kill "${daemons[i]}" 2>/dev/null || true
    done
    for pid in $command "${daemons[@]}"; do
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || continue 2
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
    done
    if [ -n "${KEEP_SLURM_TEST_DIR:-}" ]; then
        echo "kept $dir" >&2
    else
        rm -rf "$dir"
    fi
    exit "$status"
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

wait_for() { # wait_for WHAT COMMAND...: until the command succeeds, at most 20 s
    local what=$1
    shift
    for _ in $(seq 100); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    echo "$what was not up after 20 s" >&2
    return 1
}

free_ports() { # two TCP ports nobody listens on
    python3 - <<'PY'
import socket

sockets = [socket.socket() for _ in range(2)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
}

chmod 755 "$dir"
mkdir "$dir/munge" "$dir/state" "$dir/spool"
dd if=/dev/urandom of="$dir/munge/key" bs=128 count=1 status=none
chmod 400 "$dir/munge/key"
: >"$dir/munged.log"
chown -R munge: "$dir/munge" "$dir/munged.log"

cpus=$(env -u OMP_NUM_THREADS nproc) # nproc heeds OMP_NUM_THREADS, which make sets
host=$(hostname -s)
read -r controller_port node_port < <(free_ports)
memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
export SLURM_TEST_DIR=$dir SLURM_CONF=$dir/slurm.conf
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$controller_port
SlurmdPort=$node_port
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge/socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
# No cgroups: they are rarely writable inside a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# One line per ended job, for whoever has to prove that a job ran here.
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/completed_jobs.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=0
ReturnToService=2
KillWait=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF

# setpriv, not runuser: it becomes munged, so that $! is munged's own id.
setpriv --reuid=munge --regid=munge --clear-groups munged --foreground --socket="$dir/munge/socket" \
    --key-file="$dir/munge/key" --pid-file="$dir/munge/pid" --seed-file="$dir/munge/seed" \
    --log-file="$dir/munged.log" >/dev/null 2>&1 &
daemons+=($!)
wait_for munged munge --socket="$dir/munge/socket" --no-input
slurmctld -D -c >/dev/null 2>&1 &
daemons+=($!)
wait_for slurmctld scontrol ping
slurmd -D >/dev/null 2>&1 &
daemons+=($!)
node_is_idle() { [ "$(sinfo --noheader --format=%T)" = idle ]; }
wait_for slurmd node_is_idle
slurm_is_up=1
echo "Slurm $(sbatch --version | cut -d' ' -f2) is up on one node of $cpus CPUs; its logs are in $dir"

# In the background, so that a signal interrupts the wait and stop() runs at once; in a group of its own, so that stop()
# reaches all of it.
setsid "$@" &
command=$!
wait "$command"

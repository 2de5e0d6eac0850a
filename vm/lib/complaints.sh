# shellcheck shell=bash
# What a kernel log must not hold. A guest whose script succeeded and whose kernel complained has
# failed.

# Warnings and worse of the kernel itself, tasks that hang, programs that crash, memory that is used
# up. What a control group does to its own members is the test's affair, and stalls of RCU are those
# of the machine that emulates.
readonly COMPLAINTS='WARNING: |BUG: |kernel BUG|Oops|general protection fault|unable to handle|UBSAN|KASAN|KCSAN|refcount_t:|blocked for more than|(soft|hard) lockup|INFO: (possible|suspicious|task)|segfault|trap invalid opcode|Out of memory|page allocation failure|oom_reaper|scheduling while atomic|circular locking|list_(add|del) corruption|still has locks held'

# Lines of $COMPLAINTS that say nothing about what is tested, one extended regular expression each.
readonly KNOWN_COMPLAINTS='use "pci=nocrs" and report a bug
oom_reaper: reaped process [0-9]+ \(dd\)'

# complaints LOG: prints the lines of a kernel log that there is no excuse for. Fails if there is none. What came before init had
# nothing of the test yet: on a busy machine an emulated processor may stand still for so long that the kernel says so.
complaints() {
    local init
    init=$(grep -anm 1 'Run .* as init process' "$1" | cut -d: -f1)
    tail -n +"$((${init:-0} + 1))" "$1" | grep -aE "$COMPLAINTS" | grep -avE "$KNOWN_COMPLAINTS"
}

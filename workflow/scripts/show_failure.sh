# Sourced in front of every command, whose last word is its log: when the command fails, what the log ends with (the
# stage's own message, or the last lines) is shown where Snakemake was started. Not when it was interrupted.
tell() {
    local log=${2##*&> }
    case $1 in 0 | 130 | 143) return ;; esac
    [ -r "$log" ] || return
    echo "$log, exit status $1:"
    { sed -n '/ ERROR /,$p' "$log" | grep -a . || tail -n 10 "$log"; } | tail -n 40
}
trap 'tell $? "$BASH_COMMAND" >&2' EXIT

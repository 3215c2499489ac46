# shellcheck shell=bash disable=SC2153,SC2154
# What tpu_vm.sh and tpu_mig.sh share: checks of settings, and what is done on hosts that are there.
# Whoever sources it sets `command`, `script` and `dry`, and defines
#   remote HOST WORKER COMMAND      runs it there; HOST may be a slice, WORKER one of its hosts, or all
#   send HOST DESTINATION FILE...   copies files into the home directory of all hosts of HOST
#   learner_hosts, sampler_hosts    print those that are there
#   start_learner FLAGS             on all hosts of the learner, with flags that join them
#   learner_first, learner_address   print name and address of the learner's first host
shopt -s inherit_errexit # $(...) stops at its first error, too
PORT=50051 # of the learner
exec 3>&1  # what a dry run prints, also out of $(...)
fail() { echo "$script: $1" >&2; exit 2; }
run() { # prints the command in a dry run, else runs it
  if [ -n "$dry" ]; then printf '%q ' "$@" >&3; echo >&3; else "$@"; fi
}
check_settings() { # FLAG...: those that all commands need, and those of this one
  [ -n "${NAME:-}" ] || fail "NAME: missing, expected a name for the learner's slice"
  [ -n "${ZONE:-}" ] || fail "ZONE: missing, expected the zone of the TPUs, such as us-west4-a"
  [[ $SAMPLERS =~ ^[0-9]+$ ]] || fail "SAMPLERS: got $SAMPLERS, expected a number"
  case $command in
    setup | learner | samplers) [ -n "${SHARED:-}" ] || fail "SHARED: missing, expected a bucket's name or HOST:/EXPORT" ;;
  esac
  case $script:$command:$# in
    *:learner:0) fail "learner: got no flags, expected at least --config=FILE" ;;
    *:learner:* | *:logs:1 | *:0) ;;
    tpu_mig.sh:delete:1) [ "$1" = samplers ] || fail "delete: got $1, expected samplers or nothing" ;;
    *) fail "$command: got $*, expected nothing behind it" ;;
  esac
}
on() { remote "$1" "$2" "bash offpolicy_rl/launch/tpu_host.sh $3"; } # HOST WORKER ARGUMENTS
install() { # HOST CREDENTIAL...
  remote "$1" all "mkdir -p -m 700 certs && mkdir -p offpolicy_rl"
  send "$1" project.tgz "$archive"
  send "$1" certs "${@:2}"
  remote "$1" all "tar -xzf project.tgz -C offpolicy_rl"
  on "$1" all "setup $EXTRAS $SHARED"
}
each() { # FUNCTION_THAT_PRINTS_HOSTS FUNCTION ARGUMENT...; their input is not the script's
  local found host
  found=$("$1")
  for host in $found; do "$2" "$host" "${@:3}" < /dev/null; done
}
setup() {
  [ -e "$CERTS/token" ] || run launch/make_certs.sh "$CERTS" learner
  archive=build/project.tgz # the files that git knows, as they are now
  run bash -c "mkdir -p build && git ls-files -z | tar --null --files-from=- -czf $archive"
  each learner_hosts install "$CERTS"/{ca.pem,server.pem,server.key,token}
  each sampler_hosts install "$CERTS"/{ca.pem,client.pem,client.key,token}
}
act() { # the commands on hosts that are there
  local address first
  case $command in
    setup) setup ;;
    learner) start_learner "--listen=0.0.0.0:$PORT $(printf '%q ' "$@")" ;;
    samplers)
      address=$(learner_address)
      each sampler_hosts on 0 "sampler $SHARED $NAME --learner=$address:$PORT" ;;
    logs)
      first=$(learner_first)
      on "${1:-$first}" 0 logs ;;
    stop) each sampler_hosts on 0 stop; each learner_hosts on all stop ;;
  esac
}

#!/usr/bin/env bash
# make_certs.sh DIR [HOST...]: an authority, a learner's and a sampler's certificate, and a token.
#
# HOST: names or addresses at which samplers reach the learner; localhost and 127.0.0.1 are always in.
# For tests and small private clusters: DIR/ca.key can sign anything, so keep it off the machines that
# only run samplers. Everything is valid for DAYS (default 365). Needs openssl.
set -euo pipefail
usage() { sed -n '2,6s/^# \?//p' "$0"; }
[ $# -ge 1 ] || { usage >&2; exit 2; }
if [ "$1" = --help ]; then usage; exit; fi
dir=$1 days=${DAYS:-365}
shift
umask 077 # keys and token are for their owner only
mkdir -p "$dir"
cd "$dir"
for file in ca.pem server.pem client.pem token; do
  [ ! -e "$file" ] || { echo "$dir/$file exists; remove it or choose another directory." >&2; exit 1; }
done

names="DNS:localhost,IP:127.0.0.1,IP:::1"
for host in "$@"; do
  case $host in
    *:*) names+=",IP:$host" ;;                        # IPv6
    *[!0-9.]*) names+=",DNS:$host" ;;                 # a name
    *) names+=",IP:$host" ;;                          # IPv4
  esac
done

new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
run() { openssl "$@" 2> openssl.log || { cat openssl.log >&2; exit 1; }; } # openssl chats on success, too

run req -x509 "${new_key[@]}" -days "$days" -subj "/CN=offpolicy-rl test authority" \
  -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout ca.key -out ca.pem

sign() { # NAME USAGE ALTERNATIVE_NAMES
  run req "${new_key[@]}" -subj "/CN=offpolicy-rl $1" -keyout "$1.key" -out "$1.csr"
  printf '%s\n' "basicConstraints=CA:FALSE" "keyUsage=critical,digitalSignature" \
    "extendedKeyUsage=$2" "subjectAltName=$3" > "$1.ext"
  run x509 -req -in "$1.csr" -days "$days" -CA ca.pem -CAkey ca.key -CAcreateserial \
    -extfile "$1.ext" -out "$1.pem"
  rm "$1.csr" "$1.ext"
}

# The learner's serves as a sampler's, too: `local` shows it for its own samplers.
sign server serverAuth,clientAuth "$names"
sign client clientAuth "DNS:sampler"
openssl rand -hex 32 > token
rm -f openssl.log ca.srl
echo "Made in $dir: ca.pem (for both sides), server.pem and server.key (learner)," \
  "client.pem and client.key (samplers), token (both), ca.key (keep it safe)."

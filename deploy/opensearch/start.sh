#!/bin/bash
# First process of the OpenSearch container: users with the passwords of this installation in place of the image's
# demo users, a key of its own in place of the image's published one, then the image's own start.
#
# Users and roles are read at the very first start only; they live in OpenSearch from then on (docs/operate.md).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=${OPENSEARCH_HOME:-/usr/share/opensearch}
config=$home/config
java_home=${JAVA_HOME:-$home/jdk}
umask 077

# Prints the bcrypt hash of the password in the variable that is named.
hash_of() {
  local hash
  hash=$(OPENSEARCH_JAVA_HOME=$java_home bash "$home/plugins/opensearch-security/tools/hash.sh" -env "$1" |
    grep -oE '^\$2[aby]\$.{56}$') || {
    echo "start.sh: $1 could not be hashed" >&2
    exit 1
  }
  printf %s "$hash"
}

for name in OPENSEARCH_ADMIN_PASSWORD OPENSEARCH_SERVICES_PASSWORD OPENSEARCH_DASHBOARDS_PASSWORD; do
  [ -n "${!name:-}" ] || { echo "start.sh: $name is not set" >&2; exit 1; }
done
admin=$(hash_of OPENSEARCH_ADMIN_PASSWORD)
services=$(hash_of OPENSEARCH_SERVICES_PASSWORD)
dashboards=$(hash_of OPENSEARCH_DASHBOARDS_PASSWORD)

cp "$here/security/roles.yml" "$here/security/roles_mapping.yml" "$config/opensearch-security/"
cat > "$config/opensearch-security/internal_users.yml" <<YAML
_meta: {type: internalusers, config_version: 2}
admin: {hash: "$admin", reserved: true, backend_roles: [admin], description: "The administrator"}
modelworks: {hash: "$services", reserved: true, description: "The services"}
kibanaserver: {hash: "$dashboards", reserved: true, description: "OpenSearch Dashboards itself"}
YAML

# Nodes would know each other by this key; the one node listens for them on loopback only.
password=$(head -c 24 /dev/urandom | base64 | tr -d '+/=')
export STORE_PASSWORD=$password
keytool() { "$java_home/bin/keytool" -storetype PKCS12 -storepass:env STORE_PASSWORD "$@" 2> /dev/null; }
rm -f "$config"/node.p12 "$config"/trust.p12
keytool -genkeypair -alias node -keyalg EC -groupname secp256r1 -dname CN=opensearch -validity 3650 -keystore "$config/node.p12"
keytool -exportcert -alias node -keystore "$config/node.p12" |
  keytool -importcert -noprompt -alias node -keystore "$config/trust.p12"
unset STORE_PASSWORD

cat > "$config/opensearch.yml" <<YAML
cluster.name: modelworks
node.name: opensearch
discovery.type: single-node
network.host: 0.0.0.0
transport.host: 127.0.0.1
bootstrap.memory_lock: true
plugins.security.allow_default_init_securityindex: true
plugins.security.nodes_dn: ["CN=opensearch"]
plugins.security.restapi.roles_enabled: ["all_access"]
plugins.security.ssl.http.enabled: false
plugins.security.ssl.transport.enforce_hostname_verification: false
plugins.security.ssl.transport.keystore_type: PKCS12
plugins.security.ssl.transport.keystore_filepath: node.p12
plugins.security.ssl.transport.keystore_password: "$password"
plugins.security.ssl.transport.truststore_type: PKCS12
plugins.security.ssl.transport.truststore_filepath: trust.p12
plugins.security.ssl.transport.truststore_password: "$password"
YAML
exec bash "$home/opensearch-docker-entrypoint.sh" opensearch

# shellcheck shell=bash
# The S3 store; why each flag is there stands in src/modelmill/store/embedded.py.  Pods reach
# its S3 port, which wants credentials; its inner ports, which do not, stay on loopback.
mkdir -p /var/lib/seaweedfs
exec "$WEED" -logtostderr=true server -dir=/var/lib/seaweedfs \
    -ip=127.0.0.1 -ip.bind=127.0.0.1 \
    -master.electionTimeout=1s -master.telemetry=false -master.volumeSizeLimitMB=1024 \
    -volume.max=1000 -volume.preStopSeconds=0 \
    -s3 -s3.ip.bind="$NODE_ADDRESS" -s3.port=8333 -s3.localSocket=/run/seaweedfs.sock \
    -s3.config="$STATE/identities.json" -s3.autoCreateBucket=false -s3.iam=false \
    -s3.port.iceberg=0 -s3.port.lance=0

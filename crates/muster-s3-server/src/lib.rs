//! The embedded S3 server: s3s-fs made safe for conditional writes.

//! The repository in S3: packs, manifests, change log, run objects.

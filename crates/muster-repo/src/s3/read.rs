//! Reading bodies, resumed where a broken answer ended.

use std::time::Duration;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::{Bytes, BytesMut};

use super::client::S3Objects;
use super::error::{Failure, Patience, sort};
use crate::error::{RepoError, RepoErrorKind};

/// Silence in the middle of a body: longer than a store's hiccup, and the rest is asked for anew.
const BODY_SILENCE: Duration = Duration::from_secs(15);

/// Reads an object whole.
pub(super) async fn whole(objects: &S3Objects, key: &str) -> Result<Bytes, Failure> {
    read(objects, key, 0, None).await
}

/// Reads exactly `bytes` bytes from `offset`.
pub(super) async fn range(objects: &S3Objects, key: &str, offset: u64, bytes: u64) -> Result<Bytes, Failure> {
    if bytes == 0 {
        return Ok(Bytes::new());
    }
    read(objects, key, offset, Some(bytes)).await
}

async fn read(objects: &S3Objects, key: &str, offset: u64, want: Option<u64>) -> Result<Bytes, Failure> {
    let doing = objects.doing("reading", key);
    let mut want = want;
    let mut body = BytesMut::new();
    let mut patience = Patience::new();
    loop {
        let had = body.len();
        let failure = match part(objects, key, offset, &mut want, &mut body, &doing).await {
            Ok(()) => return Ok(body.freeze()),
            Err(Failure::Transient(error)) => error,
            Err(other) => return Err(other),
        };
        if body.len() > had {
            patience.renew();
        }
        if !patience.wait().await {
            return Err(Failure::Transient(failure));
        }
        tracing::debug!(%failure, resumed_at = offset + body.len() as u64, "resuming");
    }
}

/// One request for what is missing; appends what arrives, also when it ends in an error.
async fn part(
    objects: &S3Objects,
    key: &str,
    offset: u64,
    want: &mut Option<u64>,
    body: &mut BytesMut,
    doing: &str,
) -> Result<(), Failure> {
    let _permit = objects.permit().await?;
    let from = offset + body.len() as u64;
    let range = match *want {
        Some(want) => Some(format!("bytes={from}-{}", offset + want - 1)),
        None if from > 0 => Some(format!("bytes={from}-")),
        None => None,
    };
    let request = objects.client.get_object().bucket(&objects.bucket).key(objects.full_key(key));
    let answer = request.set_range(range).send().await.map_err(|error| sort(doing, &error))?;
    let expected = length_of(&answer).unwrap_or(0);
    let goal = *want.get_or_insert(expected);
    let missing = goal - (from - offset);
    if expected < missing {
        return Err(Failure::BeyondEnd);
    }
    body.reserve(usize::try_from(missing).unwrap_or(0));
    receive(answer, body, goal, doing).await
}

fn length_of(answer: &GetObjectOutput) -> Option<u64> {
    u64::try_from(answer.content_length()?).ok()
}

async fn receive(
    mut answer: GetObjectOutput,
    body: &mut BytesMut,
    goal: u64,
    doing: &str,
) -> Result<(), Failure> {
    let broken = |why: String| {
        Failure::Transient(RepoError::new(
            RepoErrorKind::Unavailable,
            format!("{doing}: the answer broke off: {why}"),
            "check the network and the object store's health, then run the command again; nothing is lost",
        ))
    };
    while (body.len() as u64) < goal {
        match tokio::time::timeout(BODY_SILENCE, answer.body.next()).await {
            Err(_) => return Err(broken(format!("nothing came for {} s", BODY_SILENCE.as_secs()))),
            Ok(Some(Err(error))) => return Err(broken(error.to_string())),
            Ok(Some(Ok(bytes))) => body.extend_from_slice(&bytes),
            Ok(None) => return Err(broken(format!("{} of {goal} bytes came", body.len()))),
        }
    }
    body.truncate(usize::try_from(goal).unwrap_or(usize::MAX));
    Ok(())
}

//! Statements that are sent one after the other without waiting for their answers.

use std::future::Future;
use std::pin::Pin;

use futures::FutureExt;
use tokio_postgres::Error;

use super::super::live::KindTable;
use super::publish::Member;

/// A statement of one store that is to be sent; its answer is the rows that it inserted.
pub(super) struct Sent<'a> {
    pub(super) member: &'a Member<'a>,
    /// The table that it inserts into; none for a mark.
    pub(super) table: Option<&'a KindTable<'a>>,
    pub(super) answer: Pin<Box<dyn Future<Output = Result<u64, Error>> + Send + 'a>>,
}

/// What became of one.
pub(super) struct Answer<'a> {
    pub(super) member: &'a Member<'a>,
    pub(super) table: Option<&'a KindTable<'a>>,
    pub(super) answer: Result<u64, Error>,
}

/// Sends all in their order without waiting in between: a statement is sent when it is first polled, and the server works
/// on them in the order in which they come.
pub(super) async fn in_one_stream(mut statements: Vec<Sent<'_>>) -> Vec<Answer<'_>> {
    let mut early: Vec<Option<Result<u64, Error>>> = Vec::with_capacity(statements.len());
    for sent in &mut statements {
        early.push((&mut sent.answer).now_or_never());
    }
    let mut answers = Vec::with_capacity(statements.len());
    for (sent, early) in statements.into_iter().zip(early) {
        let answer = match early {
            Some(answer) => answer,
            None => sent.answer.await,
        };
        answers.push(Answer { member: sent.member, table: sent.table, answer });
    }
    answers
}

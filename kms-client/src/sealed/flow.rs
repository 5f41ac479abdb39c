//! Importing a sealed file: one chunk a message, each with the header, so that whatever was not answered
//! can be sent again over another connection.

use std::{collections::VecDeque, sync::Arc};

use futures_util::Stream;
use kms_proto::v1;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::file::SealedPart;
use crate::{
    call::ProtocolError,
    flow::{Flow, Results, start},
    import::{self, ImportResult, ImportRules},
    link::Link,
    replicated::Replicated,
    sites::Errand,
    stubs,
    transport::Transport,
};

pub(crate) fn start_import(
    transport: Arc<Transport>,
    parts: impl Stream<Item = SealedPart> + Send + 'static,
    rules: ImportRules,
) -> Results<ImportResult> {
    // Not joined: a chunk is a message.
    let bounds = import::bounds(&transport, 1);
    start(transport, Importing { rules }, bounds, parts)
}

struct Importing {
    rules: ImportRules,
}

/// A chunk that is not fully answered.
struct Pending {
    part: v1::SealedPart,
    /// The line whose result is due, and how many are.
    due: u64,
    left: usize,
}

impl Flow for Importing {
    const ERRAND: Errand = Errand::AtPrimary;

    type Item = SealedPart;
    type Pending = Pending;
    type Message = v1::ImportMetersRequest;
    type Reply = v1::ImportMetersResponse;
    type Output = ImportResult;

    fn weight(part: &SealedPart) -> usize {
        part.weight()
    }

    fn pack(&mut self, parts: Vec<SealedPart>) -> Pending {
        let part = parts.into_iter().next();
        let (due, left) = part.as_ref().map_or((0, 0), |part| (part.first_line(), part.lines()));
        Pending { part: part.map(|part| part.wire).unwrap_or_default(), due, left }
    }

    fn message(&self, pending: &Pending) -> v1::ImportMetersRequest {
        v1::ImportMetersRequest {
            rules: Some(self.rules.to_wire()),
            lines: Vec::new(),
            sealed: Some(pending.part.clone()),
        }
    }

    async fn open(
        link: Link,
        outbound: Request<UnboundedReceiverStream<v1::ImportMetersRequest>>,
    ) -> Result<Streaming<v1::ImportMetersResponse>, Status> {
        stubs::meters(link).import_meters(outbound).await.map(Response::into_inner)
    }

    fn accept(
        &mut self,
        pending: &mut VecDeque<Pending>,
        reply: v1::ImportMetersResponse,
    ) -> Result<Vec<ImportResult>, ProtocolError> {
        let replicated = Replicated::from_wire(reply.replicated)?;
        let accept = |result| accept_one(pending, result, replicated);
        reply.results.into_iter().map(accept).collect()
    }
}

fn accept_one(
    pending: &mut VecDeque<Pending>,
    result: v1::ImportResult,
    replicated: Replicated,
) -> Result<ImportResult, ProtocolError> {
    let oldest = pending.front_mut().ok_or(ProtocolError::Unasked)?;
    if result.line != oldest.due {
        return Err(ProtocolError::OutOfOrder { expected: oldest.due, found: result.line });
    }
    oldest.due += 1;
    oldest.left = oldest.left.saturating_sub(1);
    if oldest.left == 0 {
        pending.pop_front();
    }
    import::result_of(result, replicated)
}

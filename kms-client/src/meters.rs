//! Provisioning, one meter at a time, and listing them.

use std::sync::Arc;

use dlms::SystemTitle;
use futures_util::{Stream, stream};
use kms_proto::v1;
use serde::Serialize;
use tonic::{Request, Response};

use crate::call::{CallError, ProtocolError};
use crate::flow::Results;
use crate::import::{self, ImportResults, ImportRules};
use crate::meter::{Meter, MeterPolicy, NewMeter};
use crate::names::{MeterId, MeterName};
use crate::records::MeterRecord;
use crate::replicated::Replicated;
use crate::sealed::{self, ImportKey, SealedPart};
use crate::sites::Errand;
use crate::stubs;
use crate::transmitting::{self, CounterDeclaration, CounterDeclared};
use crate::transport::Transport;

/// Meters in one page of a list.
const PAGE_SIZE: u32 = 500;

/// The calls about meters.
#[derive(Clone)]
pub struct Meters {
    transport: Arc<Transport>,
}

/// A meter that is now known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// As the service knows it.
    pub meter: Meter,
    /// Findings that are worth a look: a key value that another meter has, for one.
    pub warnings: Vec<String>,
    /// Whether the other site has it.
    pub replicated: Replicated,
}

/// A deleted meter that may be created again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Readmitted {
    /// Milliseconds since 1970. Sealed files are taken that were sealed later.
    pub deleted_ms: u64,
    /// Key values that stay known.
    pub keys_known: u32,
    /// Those of them that were active, and may come back.
    pub keys_that_may_come_back: u32,
    /// Whether the other site has that.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

impl Meters {
    pub(crate) fn of(transport: Arc<Transport>) -> Self {
        Self { transport }
    }

    /// Makes a meter known. Not tried again once it may have arrived.
    pub async fn create(&self, meter: NewMeter, rules: ImportRules) -> Result<Created, CallError> {
        let request =
            v1::CreateMeterRequest { meter: Some(meter.into_wire()), rules: Some(rules.to_wire()) };
        let send = |link, request| async move { stubs::meters(link).create_meter(request).await };
        let reply = self.transport.call(Errand::Write, request, send).await?;
        let v1::CreateMeterResponse { meter, warnings, replicated } = reply;
        let replicated = Replicated::from_wire(replicated)?;
        Ok(Created { meter: present(meter)?, warnings, replicated })
    }

    /// The meter of that name.
    pub async fn get(&self, name: &MeterName) -> Result<Meter, CallError> {
        let mut request = v1::GetMeterRequest::default();
        match name {
            MeterName::Id(id) => request.meter_id = id.to_string(),
            MeterName::Title(title) => request.system_title = title.as_bytes().to_vec().into(),
        }
        let send = |link, request| async move { stubs::meters(link).get_meter(request).await };
        let reply = self.transport.call(Errand::Read, request, send).await?;
        Ok(present(reply.meter)?)
    }

    /// Meters after `after`, in order of their ids, at most `limit` of them; fetched a page at a time
    /// as they are taken. Of each page first the meters, then those that can't be shown.
    pub fn list(
        &self,
        after: Option<MeterId>,
        limit: Option<usize>,
    ) -> impl Stream<Item = Result<Listed, CallError>> + Send + Unpin + 'static {
        let start = Page {
            transport: Arc::clone(&self.transport),
            next: Some(after.map(|id| id.to_string()).unwrap_or_default()),
            left: limit.unwrap_or(usize::MAX),
            meters: Vec::new().into_iter(),
            damaged: Vec::new().into_iter(),
        };
        Box::pin(stream::try_unfold(start, Page::advance))
    }

    /// Deletes a meter; whether the other site has that. Its key fingerprints stay known. Not tried again once
    /// it may have arrived.
    pub async fn delete(&self, meter_id: &MeterId) -> Result<Replicated, CallError> {
        let request = v1::DeleteMeterRequest { meter_id: meter_id.to_string() };
        let send = |link, request| async move { stubs::meters(link).delete_meter(request).await };
        let reply = self.transport.call(Errand::Write, request, send).await?;
        Ok(Replicated::from_wire(reply.replicated)?)
    }

    /// Puts a tombstone in the place of a meter's damaged record; `block` where that is not in its
    /// title's own. The block that has it now, and whether the other site has that. Not tried again once it may have
    /// arrived.
    pub async fn bury(
        &self,
        title: &SystemTitle,
        block: Option<u32>,
    ) -> Result<(u32, Replicated), CallError> {
        let system_title = title.as_bytes().to_vec().into();
        let request = v1::BuryDamagedMeterRequest { system_title, block };
        let send =
            |link, request| async move { stubs::meters(link).bury_damaged_meter(request).await };
        let reply = self.transport.call(Errand::Write, request, send).await?;
        Ok((reply.block, Replicated::from_wire(reply.replicated)?))
    }

    /// Asks whether the caller may import, and the site takes keys in clear at all, before any is sent. What
    /// is refused here would be refused of every line.
    pub async fn may_import(&self) -> Result<(), CallError> {
        let question = v1::ImportMetersRequest::default();
        let send = |link, request: Request<_>| async move {
            let question = request.map(|question| stream::iter([question]));
            let mut answers = stubs::meters(link).import_meters(question).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(Response::new(()))
        };
        match self.transport.call(Errand::AtPrimary, question, send).await {
            // That is asked of the lines, not of the question.
            Err(CallError::SecondPersonNeeded { .. }) => Ok(()),
            other => other,
        }
    }

    /// Lets a deleted meter be created again; it always takes a second person. Not tried again once it may
    /// have arrived.
    pub async fn readmit(
        &self,
        meter_id: &MeterId,
        system_title: &SystemTitle,
    ) -> Result<Readmitted, CallError> {
        let request = v1::ReadmitMeterRequest {
            meter_id: meter_id.to_string(),
            system_title: system_title.as_bytes().to_vec().into(),
        };
        let send = |link, request| async move { stubs::meters(link).readmit_meter(request).await };
        let reply = self.transport.call(Errand::Write, request, send).await?;
        let v1::ReadmitMeterResponse { deleted_ms, keys_known, .. } = reply;
        let keys_that_may_come_back = reply.keys_that_may_come_back;
        let replicated = Replicated::from_wire(reply.replicated)?;
        Ok(Readmitted { deleted_ms, keys_known, keys_that_may_come_back, replicated })
    }

    /// Says which counter a meter's key was used with last, elsewhere or before. Nothing is ever lowered. Not tried again
    /// once it may have arrived.
    pub async fn declare_counter(
        &self,
        declaration: &CounterDeclaration,
    ) -> Result<CounterDeclared, CallError> {
        transmitting::declare(&self.transport, declaration).await
    }

    /// Replaces all of a meter's policy; the meter, and whether the other site has that. Not tried again once it may have
    /// arrived.
    pub async fn set_policy(
        &self,
        meter_id: &MeterId,
        policy: &MeterPolicy,
    ) -> Result<(Meter, Replicated), CallError> {
        let request =
            v1::SetPolicyRequest { meter_id: meter_id.to_string(), policy: Some(policy.to_wire()) };
        let send = |link, request| async move { stubs::meters(link).set_policy(request).await };
        let reply = self.transport.call(Errand::Write, request, send).await?;
        Ok((present(reply.meter)?, Replicated::from_wire(reply.replicated)?))
    }

    /// Imports records: one result a record, in order. To import the same ones again changes nothing,
    /// which is why lines without a result are sent again when a connection breaks; those that had
    /// arrived nevertheless then come back as unchanged.
    pub fn import(
        &self,
        records: impl Stream<Item = MeterRecord> + Send + 'static,
        rules: ImportRules,
    ) -> ImportResults {
        let results: Results<_> = import::start_import(Arc::clone(&self.transport), records, rules);
        ImportResults::of(results)
    }
}

impl Meters {
    /// The key that the site's sealed import files are sealed to. Compare its fingerprint with the one that
    /// `kms-server init` printed before anything is sealed: [`ImportKey::pinned`].
    pub async fn import_key(&self) -> Result<ImportKey, CallError> {
        let send = |link, request| async move { stubs::meters(link).get_import_key(request).await };
        let request = v1::GetImportKeyRequest {};
        let reply = self.transport.call(Errand::AtPrimary, request, send).await?;
        Ok(ImportKey::from_wire(reply)?)
    }

    /// Imports the chunks of a sealed file, from any of them on, in order: one result a line. To import
    /// them again changes nothing.
    pub fn import_sealed(
        &self,
        parts: impl Stream<Item = SealedPart> + Send + 'static,
        rules: ImportRules,
    ) -> ImportResults {
        ImportResults::of(sealed::start_import(Arc::clone(&self.transport), parts, rules))
    }
}

/// One of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// As the service knows it.
    Meter(Box<Meter>),
    /// It can't be shown.
    Damaged(DamagedMeter),
}

/// A meter whose record can't be used: changed outside the service, or in a block that can't be opened.
/// Nothing vouches for its id and title.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DamagedMeter {
    /// As the index has it.
    pub meter_id: String,
    /// As the index has it; 16 hex digits.
    pub system_title: String,
    /// The block of that title.
    pub block: u32,
    /// Its fault.
    pub reason: String,
}

impl DamagedMeter {
    fn from_wire(meter: v1::DamagedMeter) -> Self {
        let v1::DamagedMeter { meter_id, system_title, block, reason } = meter;
        Self { meter_id, system_title: hex::encode_upper(system_title), block, reason }
    }
}

/// The place that a list has got to.
struct Page {
    transport: Arc<Transport>,
    /// The meter id after which the next page starts; `None`: there is no next page.
    next: Option<String>,
    /// Meters that are still wanted.
    left: usize,
    meters: std::vec::IntoIter<v1::Meter>,
    damaged: std::vec::IntoIter<v1::DamagedMeter>,
}

impl Page {
    async fn advance(mut self) -> Result<Option<(Listed, Self)>, CallError> {
        loop {
            if self.left == 0 {
                return Ok(None);
            }
            if let Some(meter) = self.meters.next() {
                self.left -= 1;
                return Ok(Some((Listed::Meter(Box::new(Meter::from_wire(meter)?)), self)));
            }
            if let Some(damaged) = self.damaged.next() {
                self.left -= 1;
                return Ok(Some((Listed::Damaged(DamagedMeter::from_wire(damaged)), self)));
            }
            let Some(after) = self.next.take() else {
                return Ok(None);
            };
            // Not more than is wanted: each meter of a page costs the server a look at its record.
            let page_size = u32::try_from(self.left).map_or(PAGE_SIZE, |left| left.min(PAGE_SIZE));
            let request = v1::ListMetersRequest { after: after.clone(), page_size };
            let send =
                |link, request| async move { stubs::meters(link).list_meters(request).await };
            let reply = self.transport.call(Errand::Read, request, send).await?;
            let v1::ListMetersResponse { meters, next, damaged } = reply;
            if !next.is_empty() && next == after {
                return Err(ProtocolError::EndlessList(after).into());
            }
            self.next = Some(next).filter(|next| !next.is_empty());
            self.meters = meters.into_iter();
            self.damaged = damaged.into_iter();
        }
    }
}

fn present(meter: Option<v1::Meter>) -> Result<Meter, ProtocolError> {
    Meter::from_wire(meter.ok_or(ProtocolError::Missing("meter"))?)
}

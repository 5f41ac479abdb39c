//! The canonical bytes of a campaign and of its parts.

use dlms::SystemTitle;

use crate::{
    AssociationForm, BlockCount, BlockNo, Carrier, Numbered, SecuritySetup,
    codec::{BadEncoding, Reader, put_bytes},
    life::choosing::Pair,
};

use super::{
    CHUNKS, Campaign, CampaignId, LABELS_MAX, NAME_MAX, Part, REASON_MAX, ROWS_MAX, SLOTS, is_name,
    policy::{KINDS_MAX, Policy, WINDOWS_MAX, Window},
    row::{FRAME_MAX, Row, TRIED_MAX, Tried},
};

/// Something that has no place in a record: its name, its length, and the most that there is place for.
pub(crate) type TooLong = (&'static str, usize, usize);

fn numbered<T: Numbered>(number: u8) -> Result<T, BadEncoding> {
    T::from_number(number).ok_or(BadEncoding)
}

fn put_time(out: &mut Vec<u8>, time: Option<u64>) {
    out.push(u8::from(time.is_some()));
    out.extend(time.iter().flat_map(|ms| ms.to_be_bytes()));
}

fn take_time(input: &mut Reader<'_>) -> Result<Option<u64>, BadEncoding> {
    input.flag()?.then(|| input.u64()).transpose()
}

fn text(input: &mut Reader<'_>, most: usize) -> Result<String, BadEncoding> {
    let text = input.text()?;
    if text.len() <= most { Ok(text.to_owned()) } else { Err(BadEncoding) }
}

impl Campaign {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let Self {
            slot,
            id,
            name,
            asked_by,
            policy,
            status,
            reason,
            started_ms,
            ended_ms,
            labels,
            forgiven,
            paced_ms,
            driver,
            driver_epoch,
            driver_until_ms,
            changes,
        } = self;
        out.push(*slot);
        out.extend_from_slice(&id.0);
        put_bytes(out, name.as_bytes());
        put_bytes(out, asked_by.as_bytes());
        policy.put(out);
        out.push(status.number());
        put_bytes(out, reason.as_bytes());
        out.extend_from_slice(&started_ms.to_be_bytes());
        put_time(out, *ended_ms);
        out.push(u8::try_from(labels.len()).unwrap_or(u8::MAX));
        labels.iter().for_each(|label| put_bytes(out, label.as_bytes()));
        out.extend_from_slice(&forgiven.to_be_bytes());
        out.extend_from_slice(&paced_ms.to_be_bytes());
        put_bytes(out, driver.as_bytes());
        out.extend_from_slice(&driver_epoch.to_be_bytes());
        out.extend_from_slice(&driver_until_ms.to_be_bytes());
        out.extend_from_slice(&changes.to_be_bytes());
    }

    pub(crate) fn take(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let (slot, id) = (input.u8()?, CampaignId(input.array()?));
        let (name, asked_by) = (text(input, NAME_MAX)?, text(input, REASON_MAX)?);
        let policy = Policy::take(input)?;
        let (status, reason) = (numbered(input.u8()?)?, text(input, REASON_MAX)?);
        let (started_ms, ended_ms) = (input.u64()?, take_time(input)?);
        let labels = (0..input.u8()?).map(|_| text(input, NAME_MAX));
        let labels = labels.collect::<Result<Vec<_>, _>>()?;
        let (forgiven, paced_ms) = (input.u32()?, input.u64()?);
        let campaign = Self {
            slot,
            id,
            name,
            asked_by,
            policy,
            status,
            reason,
            started_ms,
            ended_ms,
            labels,
            forgiven,
            paced_ms,
            driver: text(input, NAME_MAX)?,
            driver_epoch: input.u64()?,
            driver_until_ms: input.u64()?,
            changes: input.u64()?,
        };
        if campaign.fits().is_ok() { Ok(campaign) } else { Err(BadEncoding) }
    }

    /// Whether it is one that a record holds.
    pub(crate) fn fits(&self) -> Result<(), TooLong> {
        let bounds = [
            ("slot of a campaign", usize::from(self.slot), usize::from(SLOTS) - 1),
            ("bytes of a campaign's caller", self.asked_by.len(), REASON_MAX),
            ("bytes of a campaign's reason", self.reason.len(), REASON_MAX),
            ("bytes of a campaign's driver", self.driver.len(), NAME_MAX),
            ("labels of a campaign", self.labels.len(), LABELS_MAX),
            ("bytes of a label", self.labels.iter().map(String::len).max().unwrap_or(0), NAME_MAX),
            ("windows of a campaign", self.policy.windows.len(), WINDOWS_MAX),
            ("kinds of a campaign", self.policy.kinds.len(), KINDS_MAX),
        ];
        if !is_name(&self.name) {
            return Err(("bytes of a campaign's name", self.name.len(), NAME_MAX));
        }
        bounds.into_iter().find(|(_, len, most)| len > most).map_or(Ok(()), Err)
    }
}

impl Policy {
    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            kinds,
            setup,
            class_version,
            carrier,
            rate_per_hour,
            windows,
            exposure_cap,
            canaries,
            error_budget_permille,
            tries_max,
            retry_ms,
            lease_ms,
            hls_failures_max,
            hls_lock_ms,
        } = self;
        out.push(u8::try_from(kinds.len()).unwrap_or(u8::MAX));
        out.extend(kinds.iter().map(|kind| kind.number()));
        out.extend_from_slice(&[setup.0, *class_version, carrier.setup.0]);
        out.extend_from_slice(&carrier.client.to_be_bytes());
        out.push(carrier.form.number());
        for number in [*rate_per_hour, *exposure_cap, *canaries, *error_budget_permille] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&[*tries_max, *hls_failures_max]);
        for span in [*retry_ms, *lease_ms, *hls_lock_ms] {
            out.extend_from_slice(&span.to_be_bytes());
        }
        out.push(u8::try_from(windows.len()).unwrap_or(u8::MAX));
        windows.iter().for_each(|window| window.put(out));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let kinds = (0..input.u8()?).map(|_| numbered(input.u8()?));
        let kinds = kinds.collect::<Result<Vec<_>, _>>()?;
        let [setup, class_version, over] = input.array()?;
        let client = input.u16()?;
        let form = numbered::<AssociationForm>(input.u8()?)?;
        let carrier = Carrier { setup: SecuritySetup(over), client, form };
        let (rate_per_hour, exposure_cap) = (input.u32()?, input.u32()?);
        let (canaries, error_budget_permille) = (input.u32()?, input.u32()?);
        let [tries_max, hls_failures_max] = input.array()?;
        let (retry_ms, lease_ms, hls_lock_ms) = (input.u64()?, input.u64()?, input.u64()?);
        let windows = (0..input.u8()?).map(|_| Window::take(input));
        let windows = windows.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            kinds,
            setup: SecuritySetup(setup),
            class_version,
            carrier,
            rate_per_hour,
            windows,
            exposure_cap,
            canaries,
            error_budget_permille,
            tries_max,
            retry_ms,
            lease_ms,
            hls_failures_max,
            hls_lock_ms,
        })
    }
}

impl Window {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { from_minute, to_minute, weekdays } = self;
        out.extend_from_slice(&from_minute.to_be_bytes());
        out.extend_from_slice(&to_minute.to_be_bytes());
        out.push(*weekdays);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let (from_minute, to_minute) = (input.u16()?, input.u16()?);
        Ok(Self { from_minute, to_minute, weekdays: input.u8()? })
    }
}

fn put_pair(out: &mut Vec<u8>, pair: &Pair) {
    out.extend_from_slice(&pair.encryption.to_be_bytes());
    out.extend_from_slice(&pair.authentication.unwrap_or_default().to_be_bytes());
}

fn take_pair(input: &mut Reader<'_>) -> Result<Pair, BadEncoding> {
    let (encryption, authentication) = (input.u16()?, input.u16()?);
    Ok(Pair { encryption, authentication: Some(authentication).filter(|it| *it > 0) })
}

impl Tried {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { at_ms, pair, outcome, frame } = self;
        out.extend_from_slice(&at_ms.to_be_bytes());
        put_pair(out, pair);
        out.push(outcome.number());
        put_bytes(out, frame);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let (at_ms, pair) = (input.u64()?, take_pair(input)?);
        let outcome = numbered(input.u8()?)?;
        Ok(Self { at_ms, pair, outcome, frame: input.bytes()?.to_vec() })
    }
}

impl Part {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let Self { block, blocks, slot, chunk, campaign, started_ms, rows } = self;
        out.extend_from_slice(&blocks.get().to_be_bytes());
        out.extend_from_slice(&block.0.to_be_bytes());
        out.extend_from_slice(&[*slot, *chunk]);
        out.extend_from_slice(&campaign.0);
        out.extend_from_slice(&started_ms.to_be_bytes());
        out.extend_from_slice(&u16::try_from(rows.len()).unwrap_or(u16::MAX).to_be_bytes());
        rows.iter().for_each(|row| row.put(out));
    }

    pub(crate) fn take(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let blocks = BlockCount::new(input.u32()?).map_err(|_| BadEncoding)?;
        let block = BlockNo(input.u32()?);
        let [slot, chunk] = input.array()?;
        let (campaign, started_ms) = (CampaignId(input.array()?), input.u64()?);
        let count = input.u16()?;
        let rows = (0..count).map(|_| Row::take(input)).collect::<Result<Vec<_>, _>>()?;
        let part = Self { block, blocks, slot, chunk, campaign, started_ms, rows };
        let is_sound = part.block.0 < blocks.get() && part.fits().is_ok();
        if is_sound { Ok(part) } else { Err(BadEncoding) }
    }

    /// Whether it is one that a record holds.
    pub(crate) fn fits(&self) -> Result<(), TooLong> {
        if self.slot >= SLOTS || self.chunk >= CHUNKS {
            return Err((
                "place of a campaign's part",
                usize::from(self.chunk),
                usize::from(CHUNKS) - 1,
            ));
        }
        let belongs = |row: &Row| {
            self.blocks.block_of(&row.title) == self.block
                && Self::chunk_of(&row.title) == self.chunk
        };
        let in_order = self.rows.is_sorted_by(|a, b| a.title < b.title);
        if self.rows.len() > ROWS_MAX || !in_order || !self.rows.iter().all(belongs) {
            return Err(("members of a campaign's part", self.rows.len(), ROWS_MAX));
        }
        self.rows.iter().try_for_each(Row::fits)
    }
}

const CANARY: u8 = 1;
const SENT: u8 = 2;
const UNREACHABLE: u8 = 4;
const RESTARTED: u8 = 8;
const TRIED_SINCE: u8 = 16;
/// The first bit that has no meaning.
const FLAGS_END: u8 = 32;

impl Row {
    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            title,
            label,
            phase,
            canary,
            sent,
            unreachable,
            restarted,
            tried_since,
            failures,
            probed,
            lease,
            doing,
            until_ms,
            targets,
            last,
            refused,
            tried,
        } = self;
        out.extend_from_slice(title.as_bytes());
        let flag = |is: bool, bit: u8| if is { bit } else { 0 };
        let flags = flag(*canary, CANARY)
            | flag(*sent, SENT)
            | flag(*unreachable, UNREACHABLE)
            | flag(*restarted, RESTARTED)
            | flag(*tried_since, TRIED_SINCE);
        let last = last.map_or(0, Numbered::number);
        let refused = refused.map_or(0, Numbered::number);
        let bytes =
            [*label, phase.number(), flags, *failures, *probed, doing.number(), last, refused];
        out.extend_from_slice(&bytes);
        out.extend_from_slice(&lease.to_be_bytes());
        out.extend_from_slice(&until_ms.to_be_bytes());
        targets.iter().for_each(|version| out.extend_from_slice(&version.to_be_bytes()));
        out.push(u8::try_from(tried.len()).unwrap_or(u8::MAX));
        tried.iter().for_each(|tried| tried.put(out));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let title = SystemTitle::new(input.array()?);
        let [label, phase, flags, failures, probed, doing, last, refused] = input.array()?;
        if flags >= FLAGS_END {
            return Err(BadEncoding);
        }
        let (lease, until_ms) = (input.u64()?, input.u64()?);
        let mut targets = [0; KINDS_MAX];
        for target in &mut targets {
            *target = input.u16()?;
        }
        let row = Self {
            title,
            label,
            phase: numbered(phase)?,
            canary: flags & CANARY != 0,
            sent: flags & SENT != 0,
            unreachable: flags & UNREACHABLE != 0,
            restarted: flags & RESTARTED != 0,
            tried_since: flags & TRIED_SINCE != 0,
            failures,
            probed,
            lease,
            doing: numbered(doing)?,
            until_ms,
            targets,
            last: (last > 0).then(|| numbered(last)).transpose()?,
            refused: (refused > 0).then(|| numbered(refused)).transpose()?,
            tried: (0..input.u8()?)
                .map(|_| Tried::take(input))
                .collect::<Result<_, BadEncoding>>()?,
        };
        if row.fits().is_ok() { Ok(row) } else { Err(BadEncoding) }
    }

    fn fits(&self) -> Result<(), TooLong> {
        let frame = self.tried.iter().map(|it| it.frame.len()).max().unwrap_or(0);
        let none = self.tried.iter().filter(|it| it.pair.authentication == Some(0)).count();
        let bounds = [
            ("label of a campaign's member", usize::from(self.label), LABELS_MAX - 1),
            ("pairs tried on a meter", self.tried.len(), TRIED_MAX),
            ("bytes of a meter's answer", frame, FRAME_MAX),
            ("versions without a number", none, 0),
        ];
        bounds.into_iter().find(|(_, len, most)| len > most).map_or(Ok(()), Err)
    }
}

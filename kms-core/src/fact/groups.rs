//! Broadcast groups, as facts: meters that share one GBEK, and the GAK that their broadcasts are authenticated with. The
//! values themselves stand at the members, as their keys do: here they are named, by fingerprint.
//!
//! A group has two kinds of records. Its own one says what it is, which values are in use, and who its members are. A
//! membership is a record in the block of its meter, under a name that leads there from the meter's title: so what
//! changes the meter sees it in the same block, in the same commit.

use std::fmt;

use crate::{
    AssociationForm, Carrier, Fingerprint, Kcv, KeyKind, MeterId, Numbered as _, SecuritySetup,
    SystemTitle,
    codec::{BadEncoding, Reader, put_bytes},
};

/// Members of one group that an operator may name. Their titles stand in one record.
pub const MEMBERS_MAX: usize = 2048;
/// The most that a record has: two sites that wrote alone may have named others each.
const TITLES_MAX: usize = 8 * MEMBERS_MAX;
/// Values that a record has.
const VALUES_MAX: usize = 64;
/// Values of one kind that are remembered when they are in use no more.
const FORMER_MAX: usize = 8;

/// The operator's name for a group: 1 to 64 visible ASCII characters. Unique in its domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName(Box<str>);

/// Not a group's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a group's name is 1 to {} visible ASCII characters without spaces", MeterId::LEN_MAX)]
pub struct BadGroupName;

impl GroupName {
    /// Checks length and characters: those of a meter's id.
    pub fn new(name: &str) -> Result<Self, BadGroupName> {
        MeterId::new(name).map(|_| Self(name.into())).map_err(|_| BadGroupName)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupName({})", self.0)
    }
}

crate::numbered! {
    /// How far a group is with a value.
    pub enum ValueStage "stage" {
        /// Its members are being brought to it: what is sent goes out under this one, too.
        Rotating = 1 "ROTATING",
        /// It is the group's value.
        Settled = 2 "SETTLED",
        /// Another one has taken its place: nothing is sent under it.
        Former = 3 "FORMER",
    }
}

/// A value that a group has, or had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupValue {
    /// GBEK or GAK.
    pub kind: KeyKind,
    /// When it became the group's; milliseconds since 1970.
    pub since_ms: u64,
    /// Its identity.
    pub fingerprint: Fingerprint,
    /// Its check value, by which people know it.
    pub kcv: Kcv,
    /// How far it is.
    pub stage: ValueStage,
    /// It was made here: nobody has used it before. One that members came with may have been.
    pub made_here: bool,
}

/// A broadcast group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// When it was made; milliseconds since 1970.
    pub created_ms: u64,
    /// The security setup of its members whose GBEK it is.
    pub setup: SecuritySetup,
    /// The client that broadcasts.
    pub client: u16,
    /// That client's title: the nonces of all broadcasts begin with it, so all members know the same one.
    pub originator: SystemTitle,
    /// Whether broadcasts get a tag, under a GAK that all members share.
    pub authenticated: bool,
    /// Of COSEM class 64 in its members.
    pub class_version: u8,
    /// The association that brings members their keys.
    pub carrier: Carrier,
    /// When it was given up; milliseconds since 1970.
    pub deleted_ms: Option<u64>,
    /// When a member left that knows the GBEK, which is to be replaced since; milliseconds since 1970.
    pub wants_ms: Option<u64>,
    /// Its values, in order: by kind, time and fingerprint.
    pub values: Vec<GroupValue>,
    /// The titles of its members, in order. Whether one is a member yet, its [`Membership`] says.
    pub members: Vec<SystemTitle>,
}

/// That a meter's GBEK of one setup is a group's. A meter is in one group at most with each of its setups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The meter.
    pub title: SystemTitle,
    /// The security setup.
    pub setup: SecuritySetup,
    /// The group that it is, or was, a member of.
    pub group: GroupName,
    /// Whether the group's broadcasts are authenticated, which a GAK of this meter alone would end.
    pub authenticated: bool,
    /// Since when; milliseconds since 1970.
    pub since_ms: u64,
    /// When it left; milliseconds since 1970.
    pub left_ms: Option<u64>,
}

impl Group {
    /// The group's value: what stands at members once its rotation is over.
    pub fn settled(&self, kind: KeyKind) -> Option<&GroupValue> {
        self.last_of(kind, ValueStage::Settled)
    }

    /// The value that members are being brought to. Of two, which two sites made apart, the later one.
    pub fn rotating(&self, kind: KeyKind) -> Option<&GroupValue> {
        self.last_of(kind, ValueStage::Rotating)
    }

    /// The value that a member is to have.
    pub fn wanted(&self, kind: KeyKind) -> Option<&GroupValue> {
        self.rotating(kind).or_else(|| self.settled(kind))
    }

    /// The values under which something is sent.
    pub fn in_flight(&self, kind: KeyKind) -> impl Iterator<Item = &GroupValue> {
        self.values.iter().filter(move |it| it.kind == kind && it.stage != ValueStage::Former)
    }

    fn last_of(&self, kind: KeyKind, stage: ValueStage) -> Option<&GroupValue> {
        self.values.iter().rfind(|it| it.kind == kind && it.stage == stage)
    }

    /// Takes a value in.
    pub fn put_value(&mut self, value: GroupValue) {
        self.values.push(value);
        self.sort();
    }

    /// The rotation of `kind` is over: what members were brought to is the group's value, and every other one a former
    /// one. A wish for another GBEK from before it began is fulfilled.
    pub fn settle(&mut self, kind: KeyKind) {
        let Some(target) = self.rotating(kind).copied() else { return };
        for value in self.values.iter_mut().filter(|it| it.kind == kind) {
            let is_target = value.fingerprint == target.fingerprint;
            value.stage = if is_target { ValueStage::Settled } else { ValueStage::Former };
        }
        if kind == KeyKind::Gbek && self.wants_ms.is_some_and(|wants| wants < target.since_ms) {
            self.wants_ms = None;
        }
        self.sort();
    }

    /// Whether it has this one among its titles.
    pub fn has(&self, title: &SystemTitle) -> bool {
        self.members.binary_search(title).is_ok()
    }

    /// Takes a title in.
    pub fn add(&mut self, title: SystemTitle) {
        if let Err(place) = self.members.binary_search(&title) {
            self.members.insert(place, title);
        }
    }

    fn sort(&mut self) {
        self.values.sort_by_key(GroupValue::order);
        for kind in [KeyKind::Gbek, KeyKind::Gak] {
            let former = |it: &GroupValue| it.kind == kind && it.stage == ValueStage::Former;
            let mut over =
                self.values.iter().filter(|it| former(it)).count().saturating_sub(FORMER_MAX);
            self.values.retain(|it| {
                let goes = over > 0 && former(it);
                over -= usize::from(goes);
                !goes
            });
        }
    }

    /// What two sites know of it, in one: no member and no value is lost that a meter may have. Of a group that only one of
    /// them gave up, nothing is given up; what it is says the one that made it last.
    pub(super) fn merged(&self, other: &Self) -> Self {
        let later = |a: &Self, b: &Self| (a.created_ms, a.bytes()) >= (b.created_ms, b.bytes());
        let mut merged = if later(self, other) { self.clone() } else { other.clone() };
        merged.deleted_ms =
            self.deleted_ms.zip(other.deleted_ms).map(|(ours, theirs)| ours.max(theirs));
        merged.wants_ms = self.wants_ms.max(other.wants_ms);
        merged.values = self.values.clone();
        other.values.iter().for_each(|value| merged.merge_value(value));
        merged.sort();
        merged.members = self.members.iter().chain(&other.members).copied().collect();
        merged.members.sort_unstable();
        merged.members.dedup();
        merged
    }

    /// Of one value the stage that is less far.
    fn merge_value(&mut self, value: &GroupValue) {
        let same = |it: &&mut GroupValue| it.is_same(value);
        match self.values.iter_mut().find(same) {
            Some(known) => known.merge(value),
            None => self.values.push(*value),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.put(&mut bytes);
        bytes
    }

    fn is_in_order(&self) -> bool {
        self.values.is_sorted_by(|a, b| a.order() < b.order())
            && self.members.is_sorted_by(|a, b| a < b)
    }

    /// What of it has no place in a record: its name, its length, and the most that there is place for.
    pub(crate) fn fits(&self) -> Result<(), (&'static str, usize, usize)> {
        for (what, len, most) in [
            ("values of a group", self.values.len(), VALUES_MAX),
            ("members of a group", self.members.len(), TITLES_MAX),
        ] {
            if len > most {
                return Err((what, len, most));
            }
        }
        Ok(())
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let Self { name, created_ms, setup, client, originator, authenticated, .. } = self;
        let Self { class_version, carrier, deleted_ms, wants_ms, values, members, .. } = self;
        put_bytes(out, name.as_str().as_bytes());
        out.extend_from_slice(&created_ms.to_be_bytes());
        out.push(setup.0);
        out.extend_from_slice(&client.to_be_bytes());
        out.extend_from_slice(originator.as_bytes());
        out.extend_from_slice(&[u8::from(*authenticated), *class_version, carrier.setup.0]);
        out.extend_from_slice(&carrier.client.to_be_bytes());
        out.push(carrier.form.number());
        put_time(out, *deleted_ms);
        put_time(out, *wants_ms);
        out.push(u8::try_from(values.len()).unwrap_or(u8::MAX));
        for GroupValue { kind, since_ms, fingerprint, kcv, stage, made_here } in values {
            out.extend_from_slice(&[kind.number(), stage.number(), u8::from(*made_here)]);
            out.extend_from_slice(&since_ms.to_be_bytes());
            out.extend_from_slice(&fingerprint.0);
            out.extend_from_slice(kcv);
        }
        out.extend_from_slice(&u16::try_from(members.len()).unwrap_or(u16::MAX).to_be_bytes());
        members.iter().for_each(|title| out.extend_from_slice(title.as_bytes()));
    }

    pub(super) fn take(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let mut group = Self {
            name: name(input)?,
            created_ms: input.u64()?,
            setup: SecuritySetup(input.u8()?),
            client: input.u16()?,
            originator: SystemTitle::new(input.array()?),
            authenticated: input.flag()?,
            class_version: input.u8()?,
            carrier: take_carrier(input)?,
            deleted_ms: take_time(input)?,
            wants_ms: take_time(input)?,
            values: Vec::new(),
            members: Vec::new(),
        };
        for _ in 0..input.u8()? {
            group.values.push(GroupValue::take(input)?);
        }
        for _ in 0..input.u16()? {
            group.members.push(SystemTitle::new(input.array()?));
        }
        if group.is_in_order() && group.fits().is_ok() { Ok(group) } else { Err(BadEncoding) }
    }
}

impl GroupValue {
    fn is_same(&self, other: &Self) -> bool {
        (self.kind, self.fingerprint) == (other.kind, other.fingerprint)
    }

    fn merge(&mut self, other: &Self) {
        self.stage = self.stage.min(other.stage);
        self.since_ms = self.since_ms.min(other.since_ms);
        self.kcv = self.kcv.min(other.kcv);
        self.made_here &= other.made_here;
    }

    fn order(&self) -> (KeyKind, u64, [u8; 16]) {
        (self.kind, self.since_ms, self.fingerprint.0)
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let kind = KeyKind::from_number(input.u8()?);
        let kind = kind.filter(|kind| matches!(kind, KeyKind::Gbek | KeyKind::Gak));
        Ok(Self {
            kind: kind.ok_or(BadEncoding)?,
            stage: ValueStage::from_number(input.u8()?).ok_or(BadEncoding)?,
            made_here: input.flag()?,
            since_ms: input.u64()?,
            fingerprint: Fingerprint(input.array()?),
            kcv: input.array()?,
        })
    }
}

impl Membership {
    /// Whether it is a member now.
    pub const fn stands(&self) -> bool {
        self.left_ms.is_none()
    }

    /// What two sites know of it, in one: a member that one of them took out is a member, since it may have the key. Of two
    /// groups that it was put into apart, the later one has it.
    pub(super) fn merged(&self, other: &Self) -> Self {
        let order = |it: &Self| (it.stands(), it.since_ms, it.left_ms, it.bytes());
        if order(self) >= order(other) { self.clone() } else { other.clone() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.put(&mut bytes);
        bytes
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let Self { title, setup, group, authenticated, since_ms, left_ms } = self;
        out.extend_from_slice(title.as_bytes());
        out.extend_from_slice(&[setup.0, u8::from(*authenticated)]);
        put_bytes(out, group.as_str().as_bytes());
        out.extend_from_slice(&since_ms.to_be_bytes());
        put_time(out, *left_ms);
    }

    pub(super) fn take(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let title = SystemTitle::new(input.array()?);
        let setup = SecuritySetup(input.u8()?);
        let authenticated = input.flag()?;
        let group = name(input)?;
        let (since_ms, left_ms) = (input.u64()?, take_time(input)?);
        Ok(Self { title, setup, group, authenticated, since_ms, left_ms })
    }
}

/// The name of a membership among facts, which leads to the block of the meter.
pub(super) fn name_of<const LEN: usize>(title: &SystemTitle, setup: SecuritySetup) -> [u8; LEN] {
    let mut bytes = title.as_bytes().iter().chain([&setup.0]).chain(b"ami.kms/membership/1");
    std::array::from_fn(|_| bytes.next().copied().unwrap_or_default())
}

fn name(input: &mut Reader<'_>) -> Result<GroupName, BadEncoding> {
    GroupName::new(input.text()?).map_err(|_| BadEncoding)
}

fn take_carrier(input: &mut Reader<'_>) -> Result<Carrier, BadEncoding> {
    let (setup, client) = (SecuritySetup(input.u8()?), input.u16()?);
    let form = AssociationForm::from_number(input.u8()?).ok_or(BadEncoding)?;
    Ok(Carrier { setup, client, form })
}

fn put_time(out: &mut Vec<u8>, time: Option<u64>) {
    out.push(u8::from(time.is_some()));
    out.extend(time.iter().flat_map(|ms| ms.to_be_bytes()));
}

fn take_time(input: &mut Reader<'_>) -> Result<Option<u64>, BadEncoding> {
    input.flag()?.then(|| input.u64()).transpose()
}

#[cfg(test)]
mod groups_tests;

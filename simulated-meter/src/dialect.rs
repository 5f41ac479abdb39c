//! The ways in which meters differ when their keys change.

/// Under which keys a meter answers the transfer that changes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// Those that carried the transfer.
    Old,
    /// Those that it brought.
    New,
    /// None: the answer is plain.
    Plain,
}

/// What a meter's result is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResultWord {
    /// It says what it did.
    True,
    /// It says OK and changes nothing.
    OkNotApplied,
    /// It says NOT OK and has changed the keys.
    NotOkApplied,
}

/// When a new key begins to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Applies {
    /// Behind the answer.
    AtOnce,
    /// When the association that carried it ends; if the meter restarts before, never.
    AtRelease,
    /// When the meter has restarted.
    AfterReboot,
}

/// What a power loss does to keys that were changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PowerLoss {
    /// Nothing.
    Keeps,
    /// The keys of the last orderly restart are back.
    Reverts,
}

/// What a meter does with several keys in one transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arrays {
    /// All or none.
    Atomic,
    /// One after the other: those that are right count, whatever becomes of the rest.
    ElementWise,
    /// The first alone; the result tells of the others, which failed.
    FirstAlone,
}

/// What a new GUEK does to the invocation counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CounterOnNewKey {
    /// They begin again, for that key.
    Reset,
    /// They go on.
    Keep,
}

/// What becomes of the association that carried a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AfterTransfer {
    /// It stays.
    Stays,
    /// It is gone behind the answer.
    Drops,
}

/// How long a meter takes no association after so many failed authentications.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lock {
    /// So many in a row.
    pub failures: u8,
    /// For so long, in seconds.
    pub seconds: u32,
}

/// Version of class 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClassVersion {
    /// Has no transfer of a KEK.
    V0,
    /// Has.
    V1,
}

/// The least protection that a meter takes, and what its pushes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Policy {
    /// Plain services, too; pushes are plain.
    Nothing,
    /// A tag.
    Authenticated,
    /// Encryption; pushes have no tag.
    Encrypted,
    /// Both.
    Both,
}

/// One kind of meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dialect {
    /// Keys of the answer to a transfer.
    pub answer: Answer,
    /// Worth of its result.
    pub result: ResultWord,
    /// When it counts.
    pub applies: Applies,
    /// What a power loss does to it.
    pub power_loss: PowerLoss,
    /// Several keys at once.
    pub arrays: Arrays,
    /// Counters on a new GUEK.
    pub counter: CounterOnNewKey,
    /// Largest step of an invocation counter that is taken; none is unbounded.
    pub largest_step: Option<u32>,
    /// The association behind a transfer.
    pub after_transfer: AfterTransfer,
    /// Lock-out.
    pub lock: Option<Lock>,
    /// Version of class 64.
    pub class: ClassVersion,
    /// Least protection.
    pub policy: Policy,
}

impl Dialect {
    /// The step that [`Self::all`] bounds with: below the 2^24 between two epochs of a writer's counters.
    pub const STEP: u32 = 100_000;
    /// The lock that [`Self::all`] locks with.
    pub const LOCK: Lock = Lock { failures: 3, seconds: 600 };

    /// What the standard's text leads one to expect.
    pub const BY_THE_BOOK: Self = Self {
        answer: Answer::Old,
        result: ResultWord::True,
        applies: Applies::AtOnce,
        power_loss: PowerLoss::Keeps,
        arrays: Arrays::Atomic,
        counter: CounterOnNewKey::Reset,
        largest_step: None,
        after_transfer: AfterTransfer::Stays,
        lock: None,
        class: ClassVersion::V1,
        policy: Policy::Both,
    };

    /// How many values each field has, in the order of [`Self::numbered`].
    const CHOICES: [u32; 11] = [3, 3, 3, 2, 3, 2, 2, 2, 2, 2, 4];

    /// How many there are.
    pub const COUNT: u32 = 3 * 3 * 3 * 2 * 3 * 2 * 2 * 2 * 2 * 2 * 4;

    /// Every combination; the first is [`Self::BY_THE_BOOK`].
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(|mut number| {
            Self::numbered(Self::CHOICES.map(|choices| {
                let choice = number % choices;
                number /= choices;
                choice
            }))
        })
    }

    /// By the book, and each other value of each field by itself.
    pub fn one_at_a_time() -> Vec<Self> {
        Self::differing_in(1)
    }

    /// By the book, and every pair of values that differ from it: a fault that takes two shows here.
    pub fn two_at_a_time() -> Vec<Self> {
        Self::differing_in(2)
    }

    /// All that differ from the book in so many fields at most.
    fn differing_in(fields: usize) -> Vec<Self> {
        let book = Self::BY_THE_BOOK.numbers();
        let differs = |it: &Self| it.numbers().iter().zip(book).filter(|(a, b)| *a != b).count();
        Self::all().filter(|it| differs(it) <= fields).collect()
    }

    fn numbered(choice: [u32; 11]) -> Self {
        let two = |at: usize| choice[at] == 0;
        Self {
            answer: [Answer::Old, Answer::New, Answer::Plain][choice[0] as usize],
            result: [ResultWord::True, ResultWord::OkNotApplied, ResultWord::NotOkApplied]
                [choice[1] as usize],
            applies: [Applies::AtOnce, Applies::AtRelease, Applies::AfterReboot]
                [choice[2] as usize],
            power_loss: if two(3) { PowerLoss::Keeps } else { PowerLoss::Reverts },
            arrays: [Arrays::Atomic, Arrays::ElementWise, Arrays::FirstAlone][choice[4] as usize],
            counter: if two(5) { CounterOnNewKey::Reset } else { CounterOnNewKey::Keep },
            largest_step: (!two(6)).then_some(Self::STEP),
            after_transfer: if two(7) { AfterTransfer::Stays } else { AfterTransfer::Drops },
            lock: (!two(8)).then_some(Self::LOCK),
            class: if two(9) { ClassVersion::V1 } else { ClassVersion::V0 },
            policy: [Policy::Both, Policy::Authenticated, Policy::Encrypted, Policy::Nothing]
                [choice[10] as usize],
        }
    }

    /// The numbers that make it; a step or a lock of one's own counts as the one that is enumerated.
    fn numbers(&self) -> [u32; 11] {
        [
            self.answer as u32,
            self.result as u32,
            self.applies as u32,
            self.power_loss as u32,
            self.arrays as u32,
            self.counter as u32,
            u32::from(self.largest_step.is_some()),
            self.after_transfer as u32,
            u32::from(self.lock.is_some()),
            u32::from(self.class == ClassVersion::V0),
            3 - self.policy as u32,
        ]
    }
}

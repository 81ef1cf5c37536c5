//! What may happen, drawn from a seed, and how it is done. Choices are numbers that are taken modulo what there is to
//! choose from, so that a sequence from which steps were struck out still means something.

use super::cloud::{DeleteFault, PutFault, Weather};
use super::process::CatalogFault;

/// splitmix64: the same numbers for the same seed on every machine.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// One upload.
#[derive(Clone, Copy, Debug)]
pub struct Upload {
    pub session: u8,
    /// Its way to the cloud begins before its end.
    pub large: bool,
    /// The recording type comes after the file.
    pub type_late: bool,
    /// The client asks for an early answer.
    pub early: bool,
    /// Its idempotency key.
    pub key: Option<u8>,
    /// With a key that was used before: the same bytes, or others.
    pub same: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Action {
    Upload(Upload),
    /// At the same time, to the same session.
    UploadTwo(Upload, Upload),
    /// The client goes away in the middle.
    BreakOff(Upload),
    Delete(u16),
    DeleteSession(u8),
    List,
    Read(u16),
    /// The background takes its next job.
    Job,
    /// One is deleted while a job sends something: before it is stored, or after.
    DeleteDuringJob {
        target: u16,
        stored: bool,
    },
    /// Somebody asks that everything be synced, parked recordings too.
    SyncNow,
    Settle,
    AdoptCloud,
    AdoptLocal,
    LatePushes,
    /// A file is copied into the directory.
    Drop {
        session: u8,
    },
    /// Somebody else uses the bucket; perhaps a name that a gateway would take next.
    Stranger {
        session: u8,
        likely: Option<u8>,
    },
    Weather(Weather),
    NextPut(PutFault),
    NextDelete(DeleteFault),
    /// The next file cannot be put in its place.
    NoPlace,
    Restart,
}

#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub gateway: u8,
    pub action: Action,
    /// The process is cut off at this point of it, or when it is done if it has fewer.
    pub cut: Option<u8>,
    /// What the catalogue refuses meanwhile.
    pub fault: Option<CatalogFault>,
}

pub const SESSIONS: u8 = 2;

fn upload(dice: &mut Dice) -> Upload {
    Upload {
        session: dice.below(u64::from(SESSIONS)) as u8,
        large: dice.one_in(8),
        type_late: dice.one_in(4),
        early: dice.one_in(6),
        key: dice.one_in(3).then_some(dice.below(2) as u8),
        same: !dice.one_in(4),
    }
}

fn action(dice: &mut Dice) -> Action {
    let session = dice.below(u64::from(SESSIONS)) as u8;
    let target = dice.below(1 << 16) as u16;
    match dice.below(100) {
        0..22 => Action::Upload(upload(dice)),
        22..25 => {
            let (first, second) = (upload(dice), upload(dice));
            Action::UploadTwo(first, Upload { session: first.session, key: None, ..second })
        }
        25..27 => Action::BreakOff(upload(dice)),
        27..37 => Action::Delete(target),
        37..39 => Action::DeleteSession(session),
        39..42 => Action::List,
        42..44 => Action::Read(target),
        44..56 => Action::Job,
        56 => Action::SyncNow,
        57..61 => Action::DeleteDuringJob { target, stored: dice.one_in(2) },
        61..64 => Action::Settle,
        64..66 => Action::AdoptCloud,
        66..68 => Action::AdoptLocal,
        68..71 => Action::LatePushes,
        71..74 => Action::Drop { session },
        74..77 => Action::Stranger { session, likely: dice.one_in(2).then_some(dice.below(3) as u8 + 1) },
        77..87 => Action::Weather(dice.choose(&[
            Weather::Fine,
            Weather::Fine,
            Weather::Away,
            Weather::Away,
            Weather::ReadOnly,
            Weather::Blind,
            Weather::NoLists,
            Weather::StaleLists,
            Weather::HidingLists,
            Weather::KeyRefused,
        ])),
        87..94 => {
            let steps = dice.below(5) as u8;
            Action::NextPut(dice.choose(&[
                PutFault::Before,
                PutFault::AfterStoring,
                PutFault::Short,
                PutFault::Late(steps),
                PutFault::Late(steps),
                PutFault::HangAfterStoring,
                PutFault::Hang,
            ]))
        }
        94..96 => Action::NoPlace,
        96..99 => Action::NextDelete(dice.choose(&[
            DeleteFault::Fails,
            DeleteFault::FailsAfterwards,
            DeleteFault::SaysOk,
        ])),
        _ => Action::Restart,
    }
}

/// The steps of a seed.
pub fn steps(seed: u64, gateways: u8) -> Vec<Step> {
    let mut dice = Dice(seed);
    let count = 4 + dice.below(5);
    let faults = [
        CatalogFault::Rows,
        CatalogFault::RowChanges,
        CatalogFault::Jobs,
        CatalogFault::JobChanges,
        CatalogFault::Tombstones,
        CatalogFault::Reservations,
        CatalogFault::Releases,
    ];
    let step = |_| Step {
        gateway: dice.below(u64::from(gateways)) as u8,
        action: action(&mut dice),
        cut: dice.one_in(12).then_some(dice.below(8) as u8 + 1),
        fault: dice.one_in(25).then(|| dice.choose(&faults)),
    };
    (0..count).map(step).collect()
}

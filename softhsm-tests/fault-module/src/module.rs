//! The functions of PKCS #11 v2.40, each between its caller and the real module's.

#![allow(
    unsafe_code,
    reason = "a module is loaded through C's interface, and calls another through it"
)]
#![allow(non_snake_case, reason = "names of the standard")]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    mem, ptr, slice,
    sync::{Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError},
    thread,
};

use cryptoki_sys::*;

use super::control::{self, Garble, Place, Verdict};

/// A handle, as something that a call gives.
const HANDLE: CK_ULONG = size_of::<CK_OBJECT_HANDLE>() as CK_ULONG;
/// A token's information, likewise.
const TOKEN_INFO: CK_ULONG = size_of::<CK_TOKEN_INFO>() as CK_ULONG;

/// The real module's functions.
fn real() -> Option<&'static CK_FUNCTION_LIST> {
    static REAL: OnceLock<Option<CK_FUNCTION_LIST>> = OnceLock::new();
    let load = || {
        let path = control::real()?;
        // SAFETY: loading runs the module's initialisers: it is the token library that the test named,
        // which it would else load itself.
        let module = unsafe { Pkcs11::new(path) }.ok()?;
        let get = *module.C_GetFunctionList.as_ref().ok()?;
        let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
        // SAFETY: `list` is valid for writing; the function is the module's own.
        if unsafe { get(&mut list) } != CKR_OK || list.is_null() {
            return None;
        }
        // SAFETY: CKR_OK says that it points to the module's list, which is never freed.
        let functions = unsafe { *list };
        // Never unloaded: its functions are called until the process ends.
        mem::forget(module);
        Some(functions)
    };
    REAL.get_or_init(load).as_ref()
}

/// The length of what a call gives: known before, or written beside it.
trait Length {
    /// # Safety
    /// A pointer is null or valid.
    unsafe fn get(&self) -> usize;
    /// # Safety
    /// A pointer is null or valid.
    unsafe fn set(&self, len: usize);
}

impl Length for CK_ULONG {
    unsafe fn get(&self) -> usize {
        *self as usize
    }
    unsafe fn set(&self, _: usize) {}
}

impl Length for *mut CK_ULONG {
    unsafe fn get(&self) -> usize {
        // SAFETY: as the caller of the PKCS #11 function guarantees.
        unsafe { self.as_ref() }.map_or(0, |len| *len as usize)
    }
    unsafe fn set(&self, len: usize) {
        // SAFETY: as above.
        if let Some(place) = unsafe { self.as_mut() } {
            *place = len as CK_ULONG;
        }
    }
}

/// # Safety
/// `given` has the length that `length` says.
unsafe fn garble(how: &Verdict, name: &'static str, given: *mut u8, length: &impl Length) {
    // SAFETY: as the caller guarantees: the real module has just written it.
    let bytes = unsafe { slice::from_raw_parts_mut(given, length.get()) };
    if how.garble == Some(Garble::Clock) && bytes.len() == TOKEN_INFO as usize {
        // SAFETY: of this length it is a CK_TOKEN_INFO, which C's interface aligned.
        if let Some(info) = unsafe { given.cast::<CK_TOKEN_INFO>().as_mut() } {
            info.flags |= CKF_CLOCK_ON_TOKEN;
            info.utcTime = *b"Sat Nov 28 00:00";
        }
        return;
    }
    let len = control::change(how, name, bytes);
    // SAFETY: as above.
    unsafe { length.set(len) };
}

/// The mechanism's number, if the function has one.
macro_rules! mechanism {
    () => {
        None
    };
    // SAFETY: null or a valid mechanism, by the standard.
    ($at:ident) => {
        unsafe { $at.as_ref() }.map(|mechanism| mechanism.mechanism as u64)
    };
}

/// Whether only a length is asked for.
macro_rules! asks_length {
    () => {
        false
    };
    ($given:ident, $len:ident) => {
        $given.is_null()
    };
}

macro_rules! garble {
    ($how:expr, $name:expr,) => {};
    // SAFETY: the real module answered CKR_OK, so what it gave is there in the length that it says.
    ($how:expr, $name:expr, $given:ident, $len:ident) => {
        unsafe { garble($how, $name, $given.cast(), &$len) }
    };
}

/// What is done on the library's thread, for a caller who waits there until it is done.
struct Work(*mut (dyn FnMut() + 'static));

// SAFETY: one thread at a time has it: the caller's waits until the library's is done with it.
unsafe impl Send for Work {}

enum Desk {
    Free,
    Given(Work),
    Done,
}

static DESK: Mutex<Desk> = Mutex::new(Desk::Free);
static CHANGED: Condvar = Condvar::new();

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_while(busy: impl Fn(&Desk) -> bool) -> MutexGuard<'static, Desk> {
    CHANGED.wait_while(lock(&DESK), |desk| busy(desk)).unwrap_or_else(PoisonError::into_inner)
}

/// Works on a thread that does nothing else: its stack is the library's, and so is the part of the heap that the C
/// library gives to each thread. Nothing is allocated here and freed there, or the other way round.
fn alone(work: &mut dyn FnMut()) {
    static WORKER: Once = Once::new();
    static TURN: Mutex<()> = Mutex::new(());
    WORKER.call_once(|| drop(thread::spawn(serve)));
    let _turn = lock(&TURN);
    // SAFETY: only its lifetime is forgotten, and this function returns when it is no longer used.
    let work =
        unsafe { mem::transmute::<*mut (dyn FnMut() + '_), *mut (dyn FnMut() + 'static)>(work) };
    *lock(&DESK) = Desk::Given(Work(work));
    CHANGED.notify_all();
    *wait_while(|desk| !matches!(desk, Desk::Done)) = Desk::Free;
}

fn serve() {
    loop {
        let mut desk = wait_while(|desk| !matches!(desk, Desk::Given(_)));
        if let Desk::Given(Work(work)) = mem::replace(&mut *desk, Desk::Free) {
            drop(desk);
            // SAFETY: whoever gave it waits, and has no other reference to it.
            unsafe { (*work)() };
            *lock(&DESK) = Desk::Done;
            CHANGED.notify_all();
        }
    }
}

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// A function of the library that the token library ciphers with, which is loaded.
fn of_libcrypto(name: &CStr) -> *mut c_void {
    const LAZY: c_int = 1;
    const IF_LOADED: c_int = 4;
    // SAFETY: both names end in a zero; a library that is loaded already runs no code when it is opened.
    unsafe { dlsym(dlopen(c"libcrypto.so.3".as_ptr(), LAZY | IF_LOADED), name.as_ptr()) }
}

/// Functions of OpenSSL that pass through here where this module is preloaded: the places in which a call is held.
macro_rules! places {
    ($($name:ident($($arg:ident: $of:ty),*) = $spelt:literal, $place:expr;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $of),*) -> c_int {
            type Function = unsafe extern "C" fn($($of),*) -> c_int;
            static REAL: OnceLock<Option<Function>> = OnceLock::new();
            let load = || {
                let at = of_libcrypto($spelt);
                // SAFETY: a function of this name and these parameters, or null, which is `None`.
                unsafe { mem::transmute::<*mut c_void, Option<Function>>(at) }
            };
            let Some(real) = *REAL.get_or_init(load) else { std::process::abort() };
            // SAFETY: passed on as they came, to the function that they were for.
            control::pass($place, || unsafe { real($($arg),*) })
        }
    )*};
}

places! {
    EVP_CipherUpdate(a1: *mut c_void, a2: *mut u8, a3: *mut c_int, a4: *const u8, a5: c_int)
        = c"EVP_CipherUpdate", Place::Ciphers;
    EVP_CipherFinal_ex(a1: *mut c_void, a2: *mut u8, a3: *mut c_int) = c"EVP_CipherFinal_ex", Place::Ciphers;
    RAND_bytes(a1: *mut u8, a2: c_int) = c"RAND_bytes", Place::Random;
}

macro_rules! functions {
    ($($name:ident($($arg:ident: $of:ty),*) {$($mechanism:ident)?} [$($out:ident),*];)*) => {
        $(
            unsafe extern "C" fn $name($($arg: $of),*) -> CK_RV {
                let function = real().and_then(|real| real.$name);
                let Some(function) = function else { return CKR_FUNCTION_NOT_SUPPORTED };
                // SAFETY: passed on as they came, to the function that they were for.
                let call = || unsafe { function($($arg),*) };
                if asks_length!($($out),*) {
                    return call();
                }
                let verdict = control::meet(stringify!($name), mechanism!($($mechanism)?));
                let mut made = CKR_OK;
                if verdict.instead.is_none() {
                    let mut work = || made = control::within(&verdict, stringify!($name), call);
                    if verdict.alone { alone(&mut work) } else { work() }
                }
                if verdict.instead.is_none() && made == CKR_OK {
                    garble!(&verdict, stringify!($name), $($out),*);
                }
                let answer = verdict.instead.or(verdict.answer).map_or(made, |code| code as CK_RV);
                control::note(stringify!($name), answer as u64);
                answer
            }
        )*

        static LIST: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            C_GetFunctionList: Some(C_GetFunctionList),
            $($name: Some($name),)*
        };
    };
}

/// Where every user of a module begins.
///
/// # Safety
/// `list` is valid for writing.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if real().is_none() {
        return CKR_GENERAL_ERROR;
    }
    // SAFETY: as the caller guarantees.
    match unsafe { list.as_mut() } {
        None => CKR_ARGUMENTS_BAD,
        Some(place) => {
            // Callers read it only; C has no word for that here.
            *place = ptr::from_ref(&LIST).cast_mut();
            CKR_OK
        }
    }
}

functions! {
    C_Initialize(a1: *mut c_void) {} [];
    C_Finalize(a1: *mut c_void) {} [];
    C_GetInfo(a1: *mut CK_INFO) {} [];
    C_GetSlotList(a1: CK_BBOOL, a2: *mut CK_SLOT_ID, a3: *mut CK_ULONG) {} [];
    C_GetSlotInfo(a1: CK_SLOT_ID, a2: *mut CK_SLOT_INFO) {} [];
    C_GetTokenInfo(a1: CK_SLOT_ID, a2: *mut CK_TOKEN_INFO) {} [a2, TOKEN_INFO];
    C_GetMechanismList(a1: CK_SLOT_ID, a2: *mut CK_MECHANISM_TYPE, a3: *mut CK_ULONG) {} [];
    C_GetMechanismInfo(a1: CK_SLOT_ID, a2: CK_MECHANISM_TYPE, a3: *mut CK_MECHANISM_INFO) {} [];
    C_InitToken(a1: CK_SLOT_ID, a2: *mut CK_UTF8CHAR, a3: CK_ULONG, a4: *mut CK_UTF8CHAR) {} [];
    C_InitPIN(a1: CK_SESSION_HANDLE, a2: *mut CK_UTF8CHAR, a3: CK_ULONG) {} [];
    C_SetPIN(
        a1: CK_SESSION_HANDLE, a2: *mut CK_UTF8CHAR, a3: CK_ULONG, a4: *mut CK_UTF8CHAR, a5:
        CK_ULONG
    ) {} [];
    C_OpenSession(
        a1: CK_SLOT_ID, a2: CK_FLAGS, a3: *mut c_void, a4: CK_NOTIFY, a5: *mut CK_SESSION_HANDLE
    ) {} [];
    C_CloseSession(a1: CK_SESSION_HANDLE) {} [];
    C_CloseAllSessions(a1: CK_SLOT_ID) {} [];
    C_GetSessionInfo(a1: CK_SESSION_HANDLE, a2: *mut CK_SESSION_INFO) {} [];
    C_GetOperationState(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: *mut CK_ULONG) {} [a2, a3];
    C_SetOperationState(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: CK_OBJECT_HANDLE, a5:
        CK_OBJECT_HANDLE
    ) {} [];
    C_Login(a1: CK_SESSION_HANDLE, a2: CK_USER_TYPE, a3: *mut CK_UTF8CHAR, a4: CK_ULONG) {} [];
    C_Logout(a1: CK_SESSION_HANDLE) {} [];
    C_CreateObject(
        a1: CK_SESSION_HANDLE, a2: *mut CK_ATTRIBUTE, a3: CK_ULONG, a4: *mut CK_OBJECT_HANDLE
    ) {} [a4, HANDLE];
    C_CopyObject(
        a1: CK_SESSION_HANDLE, a2: CK_OBJECT_HANDLE, a3: *mut CK_ATTRIBUTE, a4: CK_ULONG, a5: *mut
        CK_OBJECT_HANDLE
    ) {} [];
    C_DestroyObject(a1: CK_SESSION_HANDLE, a2: CK_OBJECT_HANDLE) {} [];
    C_GetObjectSize(a1: CK_SESSION_HANDLE, a2: CK_OBJECT_HANDLE, a3: *mut CK_ULONG) {} [];
    C_GetAttributeValue(
        a1: CK_SESSION_HANDLE, a2: CK_OBJECT_HANDLE, a3: *mut CK_ATTRIBUTE, a4: CK_ULONG
    ) {} [];
    C_SetAttributeValue(
        a1: CK_SESSION_HANDLE, a2: CK_OBJECT_HANDLE, a3: *mut CK_ATTRIBUTE, a4: CK_ULONG
    ) {} [];
    C_FindObjectsInit(a1: CK_SESSION_HANDLE, a2: *mut CK_ATTRIBUTE, a3: CK_ULONG) {} [];
    C_FindObjects(
        a1: CK_SESSION_HANDLE, a2: *mut CK_OBJECT_HANDLE, a3: CK_ULONG, a4: *mut CK_ULONG
    ) {} [];
    C_FindObjectsFinal(a1: CK_SESSION_HANDLE) {} [];
    C_EncryptInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE) {a2} [];
    C_Encrypt(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [a4, a5];
    C_EncryptUpdate(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [a4, a5];
    C_EncryptFinal(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: *mut CK_ULONG) {} [a2, a3];
    C_DecryptInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE) {a2} [];
    C_Decrypt(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [a4, a5];
    C_DecryptUpdate(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [a4, a5];
    C_DecryptFinal(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: *mut CK_ULONG) {} [a2, a3];
    C_DigestInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM) {a2} [];
    C_Digest(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [a4, a5];
    C_DigestUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG) {} [];
    C_DigestKey(a1: CK_SESSION_HANDLE, a2: CK_OBJECT_HANDLE) {} [];
    C_DigestFinal(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: *mut CK_ULONG) {} [a2, a3];
    C_SignInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE) {a2} [];
    C_Sign(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [a4, a5];
    C_SignUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG) {} [];
    C_SignFinal(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: *mut CK_ULONG) {} [a2, a3];
    C_SignRecoverInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE) {a2} [];
    C_SignRecover(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [];
    C_VerifyInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE) {a2} [];
    C_Verify(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: CK_ULONG
    ) {} [];
    C_VerifyUpdate(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG) {} [];
    C_VerifyFinal(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG) {} [];
    C_VerifyRecoverInit(a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE) {a2} [];
    C_VerifyRecover(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [];
    C_DigestEncryptUpdate(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [];
    C_DecryptDigestUpdate(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [];
    C_SignEncryptUpdate(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [];
    C_DecryptVerifyUpdate(
        a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG, a4: *mut CK_BYTE, a5: *mut CK_ULONG
    ) {} [];
    C_GenerateKey(
        a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: *mut CK_ATTRIBUTE, a4: CK_ULONG, a5:
        *mut CK_OBJECT_HANDLE
    ) {a2} [a5, HANDLE];
    C_GenerateKeyPair(
        a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: *mut CK_ATTRIBUTE, a4: CK_ULONG, a5:
        *mut CK_ATTRIBUTE, a6: CK_ULONG, a7: *mut CK_OBJECT_HANDLE, a8: *mut CK_OBJECT_HANDLE
    ) {a2} [];
    C_WrapKey(
        a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE, a4: CK_OBJECT_HANDLE,
        a5: *mut CK_BYTE, a6: *mut CK_ULONG
    ) {a2} [a5, a6];
    C_UnwrapKey(
        a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE, a4: *mut CK_BYTE, a5:
        CK_ULONG, a6: *mut CK_ATTRIBUTE, a7: CK_ULONG, a8: *mut CK_OBJECT_HANDLE
    ) {a2} [a8, HANDLE];
    C_DeriveKey(
        a1: CK_SESSION_HANDLE, a2: *mut CK_MECHANISM, a3: CK_OBJECT_HANDLE, a4: *mut CK_ATTRIBUTE,
        a5: CK_ULONG, a6: *mut CK_OBJECT_HANDLE
    ) {a2} [a6, HANDLE];
    C_SeedRandom(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG) {} [];
    C_GenerateRandom(a1: CK_SESSION_HANDLE, a2: *mut CK_BYTE, a3: CK_ULONG) {} [a2, a3];
    C_GetFunctionStatus(a1: CK_SESSION_HANDLE) {} [];
    C_CancelFunction(a1: CK_SESSION_HANDLE) {} [];
    C_WaitForSlotEvent(a1: CK_FLAGS, a2: *mut CK_SLOT_ID, a3: *mut c_void) {} [];
}

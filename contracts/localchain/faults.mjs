// What the chain does wrong on purpose. A fault is set over the control port and stays until it is used up or cleared.

const COUNT_MAX = 1_000_000;
const RAW_ADDRESS = /^0:[0-9a-f]{64}$/;

/** A fault that there is not, or a value that it cannot have. */
export class FaultError extends Error {}

export class Faults {
    constructor() {
        /** So many accepted externals are answered with success and never reach a block. */
        this.drop = 0;
        /** So many accepted externals wait `delay_blocks` blocks. */
        this.delay = 0;
        this.delay_blocks = 3;
        /** So many accepted externals are put into a block twice. */
        this.duplicate = 0;
        /** An external with the bytes of one that was sent before is refused, as servers do for about a minute. */
        this.reject_repeats = false;
        /** Reads see the chain as it was so many blocks ago. */
        this.lag_blocks = 0;
        /** New connections are closed at once. */
        this.refuse = false;
        /** Queries are taken and never answered. */
        this.silent = false;
        /** No new blocks. */
        this.halt = false;
        /** The state of this account (raw address) is answered with a balance that it does not have; '' for none. */
        this.lie_about = '';
        /** This account (raw address) is answered as if there were none; '' for none. */
        this.hide = '';
    }

    clear() {
        Object.assign(this, new Faults());
    }

    /** @param {'drop' | 'delay' | 'duplicate'} name @returns {boolean} whether it strikes now */
    strikes(name) {
        const left = this[name];
        if (left === 0) return false;
        this[name] = left - 1;
        return true;
    }

    /** @param {Record<string, unknown>} wanted @throws {FaultError} nothing is changed then */
    set(wanted) {
        const checked = Object.entries(wanted).map(([name, value]) => [name, this.#check(name, value)]);
        Object.assign(this, Object.fromEntries(checked));
    }

    /** @param {string} name @param {unknown} value */
    #check(name, value) {
        if (!Object.hasOwn(this, name)) throw new FaultError(`no fault ${name}; there are ${Object.keys(this).join(', ')}`);
        const current = /** @type {Record<string, unknown>} */ (/** @type {unknown} */ (this))[name];
        if (typeof value !== typeof current) throw new FaultError(`${name} is a ${typeof current}`);
        if (typeof value === 'number' && !(Number.isSafeInteger(value) && value >= 0 && value <= COUNT_MAX)) {
            throw new FaultError(`${name} lies between 0 and ${COUNT_MAX}`);
        }
        if (typeof value === 'string' && value !== '' && !RAW_ADDRESS.test(value)) {
            throw new FaultError(`${name} is a raw address in lower case, 0:HEX`);
        }
        return value;
    }
}

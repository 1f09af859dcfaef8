/**
 * Compiles every `src/NAME.tolk` into `cocoon/contracts/code/NAME.boc` and lists the code hashes beside them.
 *
 * `node build.mjs` writes; `node build.mjs --check` compiles and exits 1 with the names of what differs. The same
 * compiler version gives the same bytes, so what is committed can be rebuilt by anybody.
 */
import { readFile, readdir, mkdir, writeFile } from 'node:fs/promises';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runTolkCompiler } from '@ton/tolk-js';

const SOURCES = fileURLToPath(new URL('src', import.meta.url));
const OUTPUT = fileURLToPath(new URL('../cocoon/contracts/code', import.meta.url));
const HASHES = 'hashes.json';

/**
 * The code of one contract.
 * @param {string} name of the source, without `.tolk`
 * @returns {Promise<{boc: Buffer, hash: string}>} a bag of cells, and the root's hash in lower-case hex
 * @throws {Error} with the compiler's words
 */
export async function compile(name) {
    const result = await runTolkCompiler({
        entrypointFileName: `${name}.tolk`,
        fsReadCallback: (path) => readFileSync(join(SOURCES, path), 'utf8'),
        optimizationLevel: 2,
        withStackComments: false,
        withSrcLineComments: false,
    });
    if (result.status === 'error') {
        throw new Error(`${name}.tolk: ${result.message}`);
    }
    if (result.stderr) {
        throw new Error(`${name}.tolk: ${result.stderr}`); // a warning is an error here
    }
    return { boc: Buffer.from(result.codeBoc64, 'base64'), hash: result.codeHashHex.toLowerCase() };
}

/** @returns {Promise<string[]>} the contracts, by name */
export async function names() {
    return (await readdir(SOURCES))
        .filter((file) => file.endsWith('.tolk'))
        .map((file) => file.slice(0, -'.tolk'.length))
        .sort();
}

/**
 * Every file that a build makes, by name.
 * @returns {Promise<Map<string, Buffer>>}
 */
export async function build() {
    /** @type {Map<string, Buffer>} */
    const files = new Map();
    /** @type {Record<string, string>} */
    const hashes = {};
    for (const name of await names()) {
        const { boc, hash } = await compile(name);
        files.set(`${name}.boc`, boc);
        hashes[name] = hash;
    }
    files.set(HASHES, Buffer.from(`${JSON.stringify(hashes, null, 2)}\n`));
    return files;
}

/**
 * What is committed and not what the sources make, and what is committed without a source.
 * @param {Map<string, Buffer>} files
 * @returns {Promise<string[]>} file names
 */
export async function differences(files) {
    const committed = (await readdir(OUTPUT)).filter((file) => file.endsWith('.boc') || file === HASHES);
    const wrong = committed.filter((file) => !files.has(file));
    for (const [file, content] of files) {
        const found = committed.includes(file) ? await readFile(join(OUTPUT, file)) : null;
        if (found === null || !found.equals(content)) {
            wrong.push(file);
        }
    }
    return wrong.sort();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
    const files = await build();
    if (process.argv.includes('--check')) {
        const wrong = await differences(files);
        if (wrong.length > 0) {
            console.error(`not what the sources make (run \`make contracts\`): ${wrong.join(', ')}`);
            process.exitCode = 1;
        }
    } else {
        await mkdir(OUTPUT, { recursive: true });
        for (const [file, content] of files) {
            await writeFile(join(OUTPUT, file), content);
        }
        process.stdout.write(files.get(HASHES) ?? '');
    }
}

// llama.cpp, by way of the npm package node-llama-cpp: requests as lines of JSON on standard input, a line for each.
//
//     node llama_cpp.mjs FOLDER MODEL.gguf SETTINGS
//
// FOLDER has node_modules in it. SETTINGS is JSON: `threads`, `sequences` and `context` (how many, and of how many
// tokens each), and `exact` for a cache in float32. `llama_cpp.py` has the other end, which says what the requests are.

import {createInterface} from "node:readline";
import {join} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, modelPath, settings] = process.argv.slice(2);
const {threads, sequences, context: contextSize, exact} = JSON.parse(settings);
const {getLlama, TokenBias} = await import(pathToFileURL(join(folder, "node_modules/node-llama-cpp/dist/index.js")));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: threads});
const model = await llama.loadModel({modelPath});
const cache = exact ? {experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"} : {};
const context = await model.createContext({
    sequences, contextSize, threads, batchSize: Math.max(512, sequences), flashAttention: false, ...cache
});
const all = Array.from({length: sequences}, () => context.getSequence());

const requests = {
    about: () => ({
        vocabulary: model.vocabularyType, bos: model.tokens.bos, eos: model.tokens.eos, window: model.trainContextSize
    }),
    tokenize: ({text}) => model.tokenize(text),
    detokenize: ({tokens}) => model.detokenize(tokens),
    // The logits after each of the tokens.
    async logits({tokens}) {
        await all[0].clearHistory();
        const asked = tokens.map((token) => [token, {generateNext: {logits: true}}]);
        const found = await all[0].controlledEvaluate(asked);
        return found.map(({next: {logits}}) => {
            const row = new Array(logits.size);
            for (const [token, logit] of logits)
                row[token] = logit;
            return row;
        });
    },
    // Greedy texts of all prompts at once, and the seconds that they took.
    async generate({prompts, count, never}) {
        const tokenBias = new TokenBias(model.tokenizer);
        for (const token of never)
            tokenBias.set(token, "never");
        await Promise.all(prompts.map((_, i) => all[i].clearHistory()));
        const start = performance.now();
        const texts = await Promise.all(prompts.map(async (prompt, i) => {
            const tokens = [];
            for await (const token of all[i].evaluate(prompt, {temperature: 0, yieldEogToken: true, tokenBias})) {
                tokens.push(token);
                if (tokens.length === count)
                    break;
            }
            return tokens;
        }));
        return {texts, seconds: (performance.now() - start) / 1000};
    }
};

for await (const line of createInterface({input: process.stdin})) {
    const {request, ...more} = JSON.parse(line);
    process.stdout.write("answer: " + JSON.stringify(await requests[request](more)) + "\n");
}
process.exit(0);

"""`minigpt serve`: a local server that samples from models, with continuous batching. Needs the extra `serve`.

programs        the compiled programs of a pool, which a thread of their own compiles ahead of their use
pace            how many tokens a pool generates between two looks at its texts
priority        which threads go first where cores are few
pool            texts of one kind of sampler that share a batch, which they join and leave while it runs
ticket          the texts of one request, as they grow
engine          the thread that runs the pools of one model
runs            the models that are served, each at its newest checkpoint
streaming       answers that grow, and clients that leave before the end
openai_request  a body of OpenAI's completions API, checked, as prompts, sampler and settings
openai_answer   the texts of such a request as bodies and events
openai_api      the routes of OpenAI's API
page            the page for playing with sampling; its files lie in static
page_requests   what the page asks for, and what it is told
security        what a request has to have before any route sees it
app             the application: all routes
"""
